//! Bytes that sessions relay. No task runs here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::DirectionLabels;

/// Relayed bytes, which each thread counts for itself, and who looks adds up. What several threads wrote in turn, once for
/// each message, the processors would have to fetch from each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic(Arc<Mutex<HashMap<ThreadId, Directions>>>);

/// Client to upstream, upstream to client.
type Directions = [ByteCounter; 2];

impl Traffic {
    /// Where sessions of this thread count theirs: client to upstream, upstream to client.
    pub(crate) fn here(&self) -> Directions {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.entry(thread::current().id()).or_default().clone()
    }

    /// Of all threads.
    fn sums(&self) -> [u64; 2] {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = threads.values().map(|counters| counters.each_ref().map(ByteCounter::get));
        counted.fold([0; 2], |[frontend, backend], [sent, received]| [frontend + sent, backend + received])
    }
}

impl EncodeMetric for Traffic {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (direction, bytes) in ["frontend", "backend"].into_iter().zip(self.sums()) {
            let labels = DirectionLabels { direction };
            encoder.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&bytes, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// One thread's, in one direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteCounter(Arc<Apart>);

impl ByteCounter {
    /// Of the thread whose counter it is. Nobody else writes, so that nothing has to be locked.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.0.store(self.0.0.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }
}

/// In cache lines that it shares with nothing, of the pair that some processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn each_thread_counts_for_itself_and_all_are_added_up() {
        let metrics = Metrics::new();
        let [here, again] = [(); 2].map(|()| metrics.bytes.here());
        here[0].add(1);
        again[0].add(2);
        assert!(Arc::ptr_eq(&here[0].0, &again[0].0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let there = metrics.bytes.here();
                assert!(!Arc::ptr_eq(&here[0].0, &there[0].0));
                for counter in &there {
                    counter.add(10);
                }
            });
        });
        let text = metrics.encode().unwrap();
        for (direction, bytes) in [("frontend", 13), ("backend", 10)] {
            let line = format!("pglease_bytes_total{{direction=\"{direction}\"}} {bytes}\n");
            assert!(text.contains(&line), "{text}");
        }
    }
}
