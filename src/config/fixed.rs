//! What holds from the start to the end of the process, whatever the file says later.

use std::collections::BTreeMap;

use super::keys::{FILE_TABLE, KEYS, Key, ROUTE_TABLE, Reads};
use super::settings::Merged;
use super::{AdminConfig, AuthConfig, Config, DrainConfig, ListenConfig, LogConfig};

/// The values, as written or by default, of the keys that cannot change while the process runs. What is written is
/// compared, not what it means: who writes the same in other words is told once too often, never too seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fixed(BTreeMap<&'static str, Vec<String>>);

impl Fixed {
    pub(super) fn of(merged: &Merged, command: Reads) -> Self {
        let is_of_table = |key: &Key| key.is_of_route() || key.is_of_file();
        let keys =
            KEYS.iter().filter(|key| key.is_read_by(command) && !is_of_table(key) && !key.may_change());
        let mut fixed = Self(keys.map(|key| (key.name, merged.settings.items(key))).collect());
        if command == Reads::Proxy {
            let files = merged.files.iter().enumerate();
            let of_files = files.flat_map(|(index, file)| {
                KEYS.iter()
                    .filter(|key| key.is_of_file())
                    .map(move |key| format!("{index} {}: {:?}", key.name, file.items(key)))
            });
            fixed.0.insert(FILE_TABLE, of_files.collect());
            // Without one nothing is listened to.
            fixed
                .0
                .insert(ROUTE_TABLE, merged.routes.first().map(|_| "some".to_owned()).into_iter().collect());
        }
        fixed
    }

    /// The keys whose values in `now` are others than these, by name.
    pub(crate) fn differing(&self, now: &Self) -> Vec<&'static str> {
        let is_other = |(name, items): &(&&'static str, &Vec<String>)| now.0.get(**name) != Some(*items);
        self.0.iter().filter(is_other).map(|(name, _)| *name).collect()
    }
}

impl Config {
    /// `new` as far as a process that was started on this takes it on.
    pub(crate) fn changed_to(&self, new: Self) -> Self {
        let auth = self.listen.auth.changed_to(new.listen.auth);
        Self {
            vault: self.vault.clone(),
            listen: ListenConfig {
                addresses: self.listen.addresses.clone(),
                unix_socket: self.listen.unix_socket.clone(),
                auth,
                threads: self.listen.threads,
                ..new.listen
            },
            routes: if self.routes.is_empty() { Vec::new() } else { new.routes },
            files: self.files.clone(),
            drain: DrainConfig { strict_exit: self.drain.strict_exit, ..new.drain },
            http: self.http,
            admin: AdminConfig { control: new.admin.control, ..self.admin },
            log: LogConfig { level: new.log.level, ..self.log.clone() },
            pod: self.pod.clone(),
        }
    }
}

impl AuthConfig {
    /// Another way of it would go with other addresses.
    fn changed_to(&self, new: Self) -> Self {
        match (self, new) {
            (Self::Password { .. }, new @ Self::Password { .. })
            | (Self::Peer { .. }, new @ Self::Peer { .. }) => new,
            (Self::Trust | Self::Password { .. } | Self::Peer { .. }, _) => self.clone(),
        }
    }
}
