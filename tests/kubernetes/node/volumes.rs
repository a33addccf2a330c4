//! What a kubelet makes of a pod's volumes: folders of files, each of whose versions is put in place at once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::container::localise;
use crate::api::Api;
use crate::site::{path_in, token};

/// The volumes of one pod, each a folder of its name below `folder`.
pub(crate) struct Volumes {
    folder: PathBuf,
    pod: Value,
    /// The files that each has now.
    files: BTreeMap<String, Files>,
    /// By what is asked for.
    tokens: BTreeMap<String, String>,
}

type Files = BTreeMap<String, Vec<u8>>;

impl Volumes {
    pub(crate) fn of(pod: &Value, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), pod: pod.clone(), files: BTreeMap::new(), tokens: BTreeMap::new() }
    }

    /// Brings them up to date. An object that is not there is `Err` with its path, unless it is optional.
    pub(crate) async fn update(&mut self, api: &Api) -> Result<(), String> {
        for volume in items(&self.pod["spec"]["volumes"]).to_vec() {
            let name = volume["name"].as_str().unwrap().to_owned();
            let files = self.files_of(api, &volume).await?;
            if self.files.get(&name) != Some(&files) {
                publish(&self.folder.join(&name), &files);
                self.files.insert(name, files);
            }
        }
        Ok(())
    }

    /// Where a container finds its mounts: path in the container, folder here. Longer paths first.
    pub(crate) fn mounts(&self, container: &Value) -> Vec<(String, PathBuf)> {
        let mut mounts: Vec<_> = items(&container["volumeMounts"])
            .iter()
            .map(|mount| {
                assert!(mount["subPath"].is_null(), "a subPath is never brought up to date: {mount}");
                let path = mount["mountPath"].as_str().unwrap().trim_end_matches('/');
                (path.to_owned(), self.folder.join(mount["name"].as_str().unwrap()))
            })
            .collect();
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        mounts
    }

    async fn files_of(&mut self, api: &Api, volume: &Value) -> Result<Files, String> {
        if let Some(sources) = volume["projected"]["sources"].as_array() {
            let mut files = Files::new();
            for source in sources {
                files.extend(self.files_of_source(api, source).await?);
            }
            return Ok(files);
        }
        if !volume["secret"].is_null() {
            let mut source = volume["secret"].clone();
            source["name"] = source["secretName"].take();
            return self.files_of_source(api, &json!({ "secret": source })).await;
        }
        self.files_of_source(api, volume).await
    }

    async fn files_of_source(&mut self, api: &Api, source: &Value) -> Result<Files, String> {
        if let Some(request) = source["serviceAccountToken"].as_object() {
            let path = request["path"].as_str().unwrap().to_owned();
            let key = source.to_string();
            if !self.tokens.contains_key(&key) {
                let token = self.request_token(api, &source["serviceAccountToken"]).await;
                self.tokens.insert(key.clone(), token);
            }
            return Ok(Files::from([(path, self.tokens[&key].clone().into_bytes())]));
        }
        if let Some(items) = source["downwardAPI"]["items"].as_array() {
            let file = |item: &Value| {
                let field = item["fieldRef"]["fieldPath"].as_str().unwrap();
                (item["path"].as_str().unwrap().to_owned(), field_of(&self.pod, field).into_bytes())
            };
            return Ok(items.iter().map(file).collect());
        }
        for (kind, collection) in [("configMap", "configmaps"), ("secret", "secrets")] {
            if source[kind].is_object() {
                return self.files_of_object(api, collection, &source[kind]).await;
            }
        }
        assert!(source["emptyDir"].is_object(), "a volume of a kind that this node does not know: {source}");
        Ok(Files::new())
    }

    async fn files_of_object(&self, api: &Api, collection: &str, source: &Value) -> Result<Files, String> {
        let namespace = self.pod["metadata"]["namespace"].as_str().unwrap();
        let path = path_in(namespace, &format!("{collection}/{}", source["name"].as_str().unwrap()));
        let Some(object) = api.find(&path).await else {
            return if source["optional"] == true { Ok(Files::new()) } else { Err(path) };
        };
        let all: Files =
            values_of(&object).map(|(key, value)| (key, self.localised(collection, value))).collect();
        let Some(items) = source["items"].as_array() else { return Ok(all) };
        let mut files = Files::new();
        for item in items {
            let key = item["key"].as_str().unwrap();
            let Some(value) = all.get(key) else { return Err(format!("{path}, key {key}")) };
            files.insert(item["path"].as_str().unwrap().to_owned(), value.clone());
        }
        Ok(files)
    }

    /// Settings name files by the container's paths.
    fn localised(&self, collection: &str, value: Vec<u8>) -> Vec<u8> {
        let containers = ["initContainers", "containers"].map(|list| items(&self.pod["spec"][list]));
        let mounts =
            containers.concat().iter().flat_map(|container| self.mounts(container)).collect::<Vec<_>>();
        match String::from_utf8(value) {
            Ok(text) if collection == "configmaps" => localise(&text, &mounts).into_bytes(),
            Ok(text) => text.into_bytes(),
            Err(binary) => binary.into_bytes(),
        }
    }

    async fn request_token(&self, api: &Api, wanted: &Value) -> String {
        let mut spec = json!({ "expirationSeconds": wanted["expirationSeconds"] });
        if wanted["audience"].is_string() {
            spec["audiences"] = json!([wanted["audience"]]);
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let namespace = text(&self.pod["metadata"]["namespace"]);
        let account = text(&self.pod["spec"]["serviceAccountName"]);
        token(api, &namespace, &account, spec, Some(&self.pod)).await
    }
}

/// The values of a ConfigMap or a Secret.
pub(crate) fn values_of(object: &Value) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let is_secret = object["kind"] == "Secret";
    object["data"].as_object().into_iter().flatten().map(move |(key, value)| {
        let value = value.as_str().unwrap();
        let bytes = if is_secret { STANDARD.decode(value).unwrap() } else { value.as_bytes().to_vec() };
        (key.clone(), bytes)
    })
}

/// A field of the pod, as the downward API names it.
pub(crate) fn field_of(pod: &Value, path: &str) -> String {
    let value = match path.split_once("['") {
        Some((map, key)) => &pod["metadata"][map.trim_start_matches("metadata.")][key.trim_end_matches("']")],
        None => path.split('.').fold(pod, |value, name| &value[name]),
    };
    value.as_str().unwrap_or_else(|| panic!("the pod has no {path}")).to_owned()
}

pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Files are links into a folder that `..data` points to, and that link is replaced in one step.
fn publish(volume: &Path, files: &Files) {
    fs::create_dir_all(volume).unwrap();
    let version = format!("..{:016x}", fastrand::u64(..));
    for (name, bytes) in files {
        let file = volume.join(&version).join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    if files.is_empty() {
        return;
    }
    let old = fs::read_link(volume.join("..data")).ok();
    symlink(&version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for name in files.keys() {
        let top = name.split('/').next().unwrap();
        // There from the first version on.
        let _ = symlink(Path::new("..data").join(top), volume.join(top));
    }
    if let Some(old) = old {
        let _ = fs::remove_dir_all(volume.join(old));
    }
}
