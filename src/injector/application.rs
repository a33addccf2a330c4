//! What the author's containers get: how to reach the sidecar. What the author set is never changed.

use serde_json::{Value, json};

use super::annotations::{Annotations, Notes, PREFIX};
use super::draft::{Draft, Malformed};
use super::proxy::Proxy;
use super::{files, mesh, pod, sidecar, template};
use crate::config::{Conflict, nearest};

/// For each container that is meant.
#[derive(Debug)]
pub(super) struct Application {
    variables: Vec<Variable>,
    mounts: Vec<Mount>,
    /// `None`: all.
    containers: Option<Vec<String>>,
    conflict: Conflict,
}

#[derive(Debug)]
struct Variable {
    name: String,
    value: String,
    /// The value names variables of the author's, which Kubernetes replaces only where they stand before it. Else it
    /// stands first, so that the author's may name it.
    is_last: bool,
}

/// A volume of the sidecar's that the application needs as well.
#[derive(Debug)]
struct Mount {
    volume: String,
    directory: String,
    /// As a container has it.
    value: Value,
}

impl Mount {
    fn read_only(volume: &str, directory: &str) -> Self {
        let value = files::mount(volume, directory, true);
        Self { volume: volume.to_owned(), directory: directory.to_owned(), value }
    }
}

/// One of the author's containers in a draft.
struct Place<'a> {
    path: String,
    name: &'a str,
    container: &'a Value,
}

impl Application {
    pub(super) fn read(
        annotations: &Annotations,
        proxy: &Proxy,
        default: Conflict,
        notes: &mut Notes,
    ) -> Self {
        let conflicts = [("keep", Conflict::Keep), ("reject", Conflict::Reject)];
        let containers = annotations.text("containers").map(|names| {
            names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        });
        Self {
            variables: variables(annotations, proxy, notes),
            mounts: mounts(proxy),
            containers,
            conflict: annotations.word("conflict", &conflicts, notes).unwrap_or(default),
        }
    }

    /// Gives each container that is meant what it lacks of it.
    pub(super) fn add(&self, draft: &mut Draft, native: bool, notes: &mut Notes) -> Result<(), Malformed> {
        let pod = draft.pod().clone();
        self.warn_of_missing(&pod, notes);
        for place in self.places(&pod, native) {
            self.add_variables(draft, &place, notes)?;
            self.add_mounts(draft, &place, notes)?;
        }
        Ok(())
    }

    /// Init containers that stand before the sidecar run before it does; so do all, where it is an ordinary container.
    fn places<'a>(&self, pod: &'a Value, native: bool) -> Vec<Place<'a>> {
        let init = pod::items(pod, pod::INIT_CONTAINERS);
        let own = init.iter().position(|container| pod::name(container) == sidecar::NAME);
        let first = own.filter(|_| native).unwrap_or(init.len());
        let all = places(pod, pod::INIT_CONTAINERS).skip(first).chain(places(pod, pod::CONTAINERS));
        all.filter(|place| self.is_meant(place)).collect()
    }

    fn is_meant(&self, place: &Place<'_>) -> bool {
        let is_named = |names: &Vec<String>| names.iter().any(|name| name == place.name);
        let is_meant = self.containers.as_ref().map_or(!mesh::is_of_mesh(place.container), is_named);
        is_meant && place.name != sidecar::NAME
    }

    fn warn_of_missing(&self, pod: &Value, notes: &mut Notes) {
        for wanted in self.containers.iter().flatten() {
            let names: Vec<&str> = pod::all_containers(pod).map(pod::name).collect();
            if !names.contains(&wanted.as_str()) {
                let meant = nearest(wanted, names.into_iter());
                let meant = meant.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                notes.warn(format!("{PREFIX}containers: the pod has no container {wanted}{meant}"));
            }
        }
    }

    fn add_variables(
        &self,
        draft: &mut Draft,
        place: &Place<'_>,
        notes: &mut Notes,
    ) -> Result<(), Malformed> {
        let path = format!("{}/env", place.path);
        let mut first = 0;
        for Variable { name, value, is_last } in &self.variables {
            let own = pod::items(place.container, "/env").iter().find(|variable| pod::name(variable) == name);
            match own {
                Some(own) if pod::text(own, "/value") == Some(value) => {}
                Some(_) => self.conflict(&format!("container {} sets {name} itself", place.name), notes),
                None if *is_last => draft.append(&path, json!({ "name": name, "value": value }))?,
                None => {
                    draft.insert(&path, first, json!({ "name": name, "value": value }))?;
                    first += 1;
                }
            }
        }
        Ok(())
    }

    fn add_mounts(&self, draft: &mut Draft, place: &Place<'_>, notes: &mut Notes) -> Result<(), Malformed> {
        let own = pod::items(place.container, "/volumeMounts");
        for Mount { volume, directory, value } in &self.mounts {
            if own.iter().any(|mount| pod::name(mount) == volume) {
                continue;
            }
            let is_there = |mount: &Value| {
                pod::text(mount, "/mountPath").is_some_and(|path| path.trim_end_matches('/') == directory)
            };
            if own.iter().any(is_there) {
                self.conflict(
                    &format!("container {} has a volume of its own at {directory}", place.name),
                    notes,
                );
                continue;
            }
            draft.append(&format!("{}/volumeMounts", place.path), value.clone())?;
        }
        Ok(())
    }

    fn conflict(&self, what: &str, notes: &mut Notes) {
        match self.conflict {
            Conflict::Keep => notes.warn(format!("{what}, which stays as it is")),
            Conflict::Reject => notes.fault(format!(
                "{what}, and {PREFIX}conflict is reject; remove it, or leave the container out of {PREFIX}containers"
            )),
        }
    }
}

fn places<'a>(pod: &'a Value, list: &'a str) -> impl Iterator<Item = Place<'a>> {
    pod::items(pod, list).iter().enumerate().map(move |(index, container)| Place {
        path: format!("{list}/{index}"),
        name: pod::name(container),
        container,
    })
}

fn mounts(proxy: &Proxy) -> Vec<Mount> {
    let socket = proxy.socket.iter().map(|directory| Mount {
        volume: sidecar::SOCKET_VOLUME.to_owned(),
        directory: directory.clone(),
        value: sidecar::socket_mount(directory),
    });
    let shared = proxy.shared_files().map(|file| Mount::read_only(file.volume, file.directory));
    let files =
        proxy.credential_files.volumes().map(|(volume, directory)| Mount::read_only(&volume, directory));
    socket.chain(shared).chain(files).collect()
}

fn variables(annotations: &Annotations, proxy: &Proxy, notes: &mut Notes) -> Vec<Variable> {
    if !proxy.listens() {
        return Vec::new();
    }
    let user = annotations.text("database-user").unwrap_or("app");
    let database = annotations.text("database").or_else(|| proxy.database());
    let host = proxy.socket.as_deref().unwrap_or("localhost");
    let port = proxy.port().to_string();
    let known = [("host", Some(host)), ("port", Some(&port)), ("database", database), ("user", Some(user))];

    let mut variables: Vec<Variable> = url(annotations, proxy, &known, notes).into_iter().collect();
    if annotations.is_true("pg-env", notes) {
        let pg = [
            ("PGHOST", Some(host)),
            ("PGPORT", Some(port.as_str())),
            ("PGDATABASE", database),
            ("PGUSER", Some(user)),
            ("PGSSLMODE", Some("disable")),
        ];
        for (name, value) in pg {
            if let Some(value) = value.filter(|_| variables.iter().all(|variable| variable.name != name)) {
                let value = sidecar::literal(value);
                variables.push(Variable { name: name.to_owned(), value, is_last: false });
            }
        }
    }
    variables
}

/// `DATABASE_URL`, or what it is to be called. There is none where several databases are served and nobody says which.
fn url(
    annotations: &Annotations,
    proxy: &Proxy,
    known: &[(&str, Option<&str>)],
    notes: &mut Notes,
) -> Option<Variable> {
    let name = annotations.parse("database-url-env", notes, variable_name);
    let name = name.unwrap_or_else(|| Some("DATABASE_URL".to_owned()))?;
    let default = if proxy.socket.is_some() { SOCKET_URL } else { URL };
    let own = annotations.get("database-url");
    let text = own.map_or(default, |written| &written.value);
    match template::fill(text, known) {
        Ok(value) => Some(Variable { name, is_last: value.contains("$("), value }),
        Err(template::Error::Unknown(problem)) => {
            notes.faults.extend(own.map(|written| written.fault(&problem)));
            None
        }
        Err(template::Error::Absent(_)) if proxy.is_partial && own.is_none() => None,
        // What is missing may be there once that which is wrong is right.
        Err(template::Error::Absent(_)) if !notes.faults.is_empty() => None,
        Err(template::Error::Absent(missing)) => {
            notes.fault(format!(
                "annotation {PREFIX}{missing} is missing, as {PREFIX}upstream names none; write it, or a \
                 {PREFIX}database-url without <{missing}>"
            ));
            None
        }
    }
}

/// `None` is none. Kubernetes takes more, and shells take this.
fn variable_name(text: &str) -> Result<Option<String>, String> {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match text {
        "none" => Ok(None),
        name if name.bytes().all(is_of_name) && !name.starts_with(|first: char| first.is_ascii_digit()) => {
            Ok(Some(name.to_owned()))
        }
        _ => Err("not the name of a variable; use letters, digits and \"_\"".to_owned()),
    }
}

/// Some libraries insist on a user, some on TLS unless they are told.
const URL: &str = "postgresql://<user>@<host>:<port>/<database>?sslmode=disable";
const SOCKET_URL: &str = "postgresql://<user>@/<database>?host=<host>&port=<port>&sslmode=disable";
