//! Which startup packets sessions begin with, learnt from those that have begun, and how many sessions of each are
//! worth having ready. Pure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::startup::StartupParameters;

/// The packets of one route, as they go upstream.
#[derive(Debug, Default)]
pub(super) struct Packets {
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    packet: Arc<StartupParameters>,
    /// Sessions that began with it, those of a minute ago counted half.
    weight: f64,
    /// Sessions that began with it, up to two: a packet that comes once, as one with a name of its own for each
    /// connection, does not come again.
    times: u8,
    at: Instant,
}

impl Seen {
    fn weight(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at);
        self.weight * (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
    }
}

impl Packets {
    /// Takes note of a session that has begun with `packet`.
    pub(super) fn note(&mut self, packet: &StartupParameters, now: Instant) {
        self.seen.retain(|seen| now.saturating_duration_since(seen.at) < MEMORY);
        if let Some(seen) = self.seen.iter_mut().find(|seen| *seen.packet == *packet) {
            seen.weight = seen.weight(now) + 1.0;
            seen.times = 2;
            seen.at = now;
            return;
        }
        if self.seen.len() >= MAX_PACKETS {
            let weights = self.seen.iter().map(|seen| seen.weight(now)).enumerate();
            if let Some((least, _)) = weights.min_by(|(_, one), (_, other)| one.total_cmp(other)) {
                self.seen.swap_remove(least);
            }
        }
        self.seen.push(Seen { packet: Arc::new(packet.clone()), weight: 1.0, times: 1, at: now });
    }

    /// The packet to have one more session ready of, where `ready` tells how many there are of one and `size` is for all.
    /// Each packet has its share: what comes most often has most of them.
    pub(super) fn next(
        &self,
        size: usize,
        ready: impl Fn(&StartupParameters) -> usize,
        now: Instant,
    ) -> Option<&Arc<StartupParameters>> {
        let known = |seen: &&Seen| seen.times > 1 && now.saturating_duration_since(seen.at) < MEMORY;
        let mut shares: Vec<(&Seen, f64, usize)> =
            self.seen.iter().filter(known).map(|seen| (seen, seen.weight(now), 0)).collect();
        for _ in 0..size {
            // As seats are shared out by votes, after D'Hondt.
            let claim = |(_, weight, share): &&mut (&Seen, f64, usize)| {
                let share = u32::try_from(*share).unwrap_or(u32::MAX);
                *weight / (f64::from(share) + 1.0)
            };
            let next = shares.iter_mut().max_by(|one, other| claim(one).total_cmp(&claim(other)))?;
            next.2 += 1;
        }
        shares
            .into_iter()
            .find(|(seen, _, share)| ready(&seen.packet) < *share)
            .map(|(seen, ..)| &seen.packet)
    }
}

/// Packets that are remembered: an application has one or two.
const MAX_PACKETS: usize = 8;
/// A session counts half after that.
const HALF_LIFE: Duration = Duration::from_mins(1);
/// What has not come for so long is not kept ready for.
const MEMORY: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(name: &str) -> StartupParameters {
        let mut packet = StartupParameters::default();
        packet.push("database", "wizard");
        packet.push("application_name", name);
        packet
    }

    /// What would be made ready one after the other, up to `size`.
    fn made(packets: &Packets, size: usize, now: Instant) -> Vec<StartupParameters> {
        let mut made: Vec<StartupParameters> = Vec::new();
        let count = |made: &[StartupParameters], packet: &StartupParameters| {
            made.iter().filter(|made| *made == packet).count()
        };
        while let Some(next) = packets.next(size, |packet| count(&made, packet), now) {
            made.push(StartupParameters::clone(next));
        }
        made
    }

    #[test]
    fn what_comes_again_is_made_ready_by_how_often_it_comes() {
        let (mut packets, now) = (Packets::default(), Instant::now());
        let (often, seldom) = (packet("often"), packet("seldom"));
        packets.note(&packet("once"), now);
        assert!(made(&packets, 3, now).is_empty());
        for _ in 0..6 {
            packets.note(&often, now);
        }
        for _ in 0..2 {
            packets.note(&seldom, now);
        }
        let made_of = |size| {
            let made = made(&packets, size, now);
            (made.iter().filter(|made| **made == often).count(), made.len())
        };
        assert_eq!([0, 1, 4, 8].map(made_of), [(0, 0), (1, 1), (3, 4), (6, 8)]);
    }

    #[test]
    fn packet_is_the_whole_of_it_in_its_order() {
        let (mut packets, now) = (Packets::default(), Instant::now());
        let mut other_order = StartupParameters::default();
        other_order.push("application_name", "app");
        other_order.push("database", "wizard");
        packets.note(&packet("app"), now);
        packets.note(&other_order, now);
        assert!(made(&packets, 8, now).is_empty());
    }

    #[test]
    fn what_came_lately_counts_more_and_what_does_not_come_is_forgotten() {
        let (mut packets, began) = (Packets::default(), Instant::now());
        let at = |minutes| began + Duration::from_mins(minutes);
        for _ in 0..8 {
            packets.note(&packet("before"), began);
        }
        for _ in 0..2 {
            packets.note(&packet("now"), at(5));
        }
        assert_eq!(made(&packets, 1, at(5)), [packet("now")]);
        assert_eq!(made(&packets, 1, at(14)), [packet("now")]);
        assert!(made(&packets, 1, at(15)).is_empty());
    }

    #[test]
    fn few_are_remembered_and_the_rarest_gives_way() {
        let (mut packets, now) = (Packets::default(), Instant::now());
        for _ in 0..2 {
            packets.note(&packet("app"), now);
        }
        for other in 0..1000 {
            packets.note(&packet(&other.to_string()), now);
        }
        assert_eq!(packets.seen.len(), MAX_PACKETS);
        assert_eq!(made(&packets, 2, now), [packet("app"), packet("app")]);
    }
}
