//! What was measured, as it stands in `target/bench/NAME.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::spread::Spread;

/// Figures of one way to the database in one round, by name: `tps`, `cpu_us`.
pub(crate) type Figures = BTreeMap<String, f64>;

/// One scenario, round by round.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Results {
    pub(crate) name: String,
    /// What was done, for people.
    pub(crate) what: String,
    /// The conditions: what was measured under others is not taken for it.
    pub(crate) under: String,
    /// Tells builds of pglease apart.
    pub(crate) build: String,
    /// Ways to the database in the order in which they are shown.
    pub(crate) ways: Vec<String>,
    /// Of each way what it was left out for.
    pub(crate) absent: BTreeMap<String, String>,
    /// By way.
    pub(crate) rounds: Vec<BTreeMap<String, Figures>>,
}

impl Results {
    /// Of one way over all rounds.
    pub(crate) fn spread(&self, way: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| round.get(way)?.get(figure).copied()))
    }

    /// Of one way ÷ another of the same round.
    pub(crate) fn ratio(&self, way: &str, to: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| {
            let (above, below) = (round.get(way)?.get(figure)?, round.get(to)?.get(figure)?);
            (*below != 0.0).then(|| above / below)
        }))
    }

    /// Of one way ÷ the best of others, which is the one with the least median, or the most. Were it another in each
    /// round, luck would choose it.
    pub(crate) fn ratio_to_best(
        &self,
        way: &str,
        others: &[&str],
        figure: &str,
        least: bool,
    ) -> Option<Spread> {
        let medians = others.iter().filter_map(|other| Some((other, self.spread(other, figure)?.median)));
        let by_median = |a: &(_, f64), b: &(_, f64)| a.1.total_cmp(&b.1);
        let best = if least { medians.min_by(by_median) } else { medians.max_by(by_median) };
        self.ratio(way, best?.0, figure)
    }

    /// Names of all figures, in the order of the alphabet.
    pub(crate) fn figures(&self) -> Vec<String> {
        let names = self.rounds.iter().flat_map(BTreeMap::values).flat_map(BTreeMap::keys);
        names.collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name, "what": self.what, "under": self.under, "build": self.build, "ways": self.ways,
            "absent": self.absent, "rounds": self.rounds,
        })
    }

    /// Nothing of what is no such file.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value[name].as_str()?.to_owned());
        let round = |round: &Value| {
            let ways =
                round.as_object()?.iter().map(|(way, of)| Some((way.clone(), figures(of.as_object()?)?)));
            ways.collect()
        };
        let absent = value["absent"].as_object()?.iter();
        Some(Self {
            name: text("name")?,
            what: text("what")?,
            under: text("under")?,
            build: text("build")?,
            ways: value["ways"]
                .as_array()?
                .iter()
                .map(|way| Some(way.as_str()?.to_owned()))
                .collect::<Option<_>>()?,
            absent: absent
                .map(|(way, why)| Some((way.clone(), why.as_str()?.to_owned())))
                .collect::<Option<_>>()?,
            rounds: value["rounds"].as_array()?.iter().map(round).collect::<Option<_>>()?,
        })
    }
}

fn figures(of: &Map<String, Value>) -> Option<Figures> {
    of.iter().map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
}
