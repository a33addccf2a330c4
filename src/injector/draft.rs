//! A pod on its way to the patched one: every change is made here, and written down as an operation of a JSON Patch.
//!
//! RFC 6902 §4.1: only `add` is ever used, so that nothing the author wrote is changed or removed. RFC 6901 §4: paths,
//! with `~1` for a `/` in a key and `~0` for a `~`. An operation says nothing about what is not there yet, as pods
//! have no `volumes`, `env` or `annotations` where nobody wrote some: the missing list or map is then added with what
//! belongs in it.

use serde_json::{Map, Value, json};

/// A pod with what has been added to it.
#[derive(Debug)]
pub(super) struct Draft {
    pod: Value,
    operations: Vec<Value>,
}

/// What stands where a list or map is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} of the pod is not what Kubernetes has there")]
pub(super) struct Malformed {
    path: String,
}

impl Draft {
    pub(super) fn new(pod: &Value) -> Self {
        Self { pod: pod.clone(), operations: Vec::new() }
    }

    /// As it is now.
    pub(super) fn pod(&self) -> &Value {
        &self.pod
    }

    /// Of a JSON Patch that makes the draft of the pod that it began as.
    pub(super) fn into_operations(self) -> Vec<Value> {
        self.operations
    }

    /// Puts `value` into the list at `path`, before what stands at `index`; at its end where it is shorter.
    pub(super) fn insert(&mut self, path: &str, index: usize, value: Value) -> Result<(), Malformed> {
        let malformed = || Malformed { path: path.to_owned() };
        match self.pod.pointer_mut(path) {
            None | Some(Value::Null) => self.put(path, Value::Array(vec![value])),
            Some(Value::Array(items)) => {
                let index = index.min(items.len());
                items.insert(index, value.clone());
                self.record(&format!("{path}/{index}"), value);
                Ok(())
            }
            Some(_) => Err(malformed()),
        }
    }

    /// Puts `value` at the end of the list at `path`.
    pub(super) fn append(&mut self, path: &str, value: Value) -> Result<(), Malformed> {
        self.insert(path, usize::MAX, value)
    }

    /// Gives the map at `path` a `value` for a `key` that it does not have.
    pub(super) fn set(&mut self, path: &str, key: &str, value: Value) -> Result<(), Malformed> {
        match self.pod.pointer_mut(path) {
            None | Some(Value::Null) => {
                self.put(path, Value::Object(Map::from_iter([(key.to_owned(), value)])))
            }
            Some(Value::Object(map)) => {
                map.insert(key.to_owned(), value.clone());
                self.record(&format!("{path}/{}", escape(key)), value);
                Ok(())
            }
            Some(_) => Err(Malformed { path: path.to_owned() }),
        }
    }

    /// Adds a member that is missing to the map that `path` leads to.
    fn put(&mut self, path: &str, value: Value) -> Result<(), Malformed> {
        let malformed = || Malformed { path: path.to_owned() };
        let (parent, key) = path.rsplit_once('/').ok_or_else(malformed)?;
        let map = self.pod.pointer_mut(parent).and_then(Value::as_object_mut).ok_or_else(malformed)?;
        map.insert(key.replace("~1", "/").replace("~0", "~"), value.clone());
        self.record(path, value);
        Ok(())
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "json! takes a reference, and the callers have no more use for it"
    )]
    fn record(&mut self, path: &str, value: Value) {
        self.operations.push(json!({ "op": "add", "path": path, "value": value }));
    }
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
