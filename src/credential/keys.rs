//! What the password of one credential comes to, computed once for each salt that a server keeps it under.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::wire::scram::{Keys, Salting};

/// The keys of one credential. They go with it, overwritten as the password is.
#[derive(Debug, Default)]
pub(crate) struct DerivedKeys {
    /// Newest last.
    known: Mutex<VecDeque<(Salting, Arc<OnceCell<Keys>>)>>,
}

/// The keys under one salt, or the place for them.
pub(crate) type KeysOf = Arc<OnceCell<Keys>>;

impl DerivedKeys {
    /// The place of the keys under `salting`. Who finds it empty fills it, while others who have it wait.
    ///
    /// Hosts that stand for one another have the same salt; a server that says another one each time pushes out no more
    /// than what can be computed again.
    pub(crate) fn under(&self, salting: &Salting) -> KeysOf {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, keys)) = known.iter().find(|(of, _)| of == salting) {
            return Arc::clone(keys);
        }
        if known.len() >= MAX_SALTINGS {
            known.pop_front();
        }
        let keys = KeysOf::default();
        known.push_back((salting.clone(), Arc::clone(&keys)));
        keys
    }
}

/// For more hosts than that with a salt each, keys are computed more than once.
const MAX_SALTINGS: usize = 8;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use secrecy::SecretString;

    use super::*;

    fn salting(salt: &str, iterations: u32) -> Salting {
        Salting { salt: salt.into(), iterations: NonZeroU32::new(iterations).unwrap() }
    }

    #[tokio::test]
    async fn keys_are_derived_once_for_each_salt_and_number_of_rounds_and_a_few_are_kept() {
        let derived = DerivedKeys::default();
        let mut derivations = 0;
        let mut ask = async |salting: Salting| {
            let place = derived.under(&salting);
            let derive = async || {
                derivations += 1;
                Keys::derive(&SecretString::from("secret"), &salting)
            };
            place.get_or_init(derive).await;
            derivations
        };
        for (salt, iterations, expected) in [("a", 1, 1), ("a", 1, 1), ("b", 1, 2), ("a", 2, 3), ("b", 1, 3)]
        {
            assert_eq!(ask(salting(salt, iterations)).await, expected, "{salt} {iterations}");
        }
        for other in 0..MAX_SALTINGS {
            ask(salting(&format!("other {other}"), 1)).await;
        }
        assert_eq!(ask(salting("a", 1)).await, 3 + MAX_SALTINGS + 1);
        assert_eq!(derived.known.lock().unwrap().len(), MAX_SALTINGS);
    }
}
