//! Tables of exchanges, and a small server of its own that any exchange is played against.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const READY: &[u8] = b"Z\0\0\0\x05I";

/// A session that is idle behind its login.
fn idle() -> Tracker {
    let mut tracker = Tracker::new();
    tracker.backend(b"S\0\0\0\x08a\0b\0Z\0\0\0\x05I");
    assert!(tracker.is_idle());
    tracker
}

/// A message without a body, or ReadyForQuery in the state that follows its tag.
fn message(tag: u8, state: Option<u8>) -> Vec<u8> {
    match state {
        Some(state) => vec![tag, 0, 0, 0, 5, state],
        None => vec![tag, 0, 0, 0, 4],
    }
}

/// Plays `script`: words of tags, `>` before those of the client, `<` before those of upstream. `Z` is followed
/// by its state.
fn play(tracker: &mut Tracker, script: &str) {
    for word in script.split_whitespace() {
        let (from_client, tags) = match word.split_at(1) {
            (">", tags) => (true, tags),
            ("<", tags) => (false, tags),
            _ => panic!("{word} has no direction"),
        };
        let mut tags = tags.bytes();
        while let Some(tag) = tags.next() {
            let state = if !from_client && tag == b'Z' { tags.next() } else { None };
            let bytes = message(tag, state);
            if from_client { tracker.frontend(&bytes) } else { tracker.backend(&bytes) }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Doing {
    Idle,
    Running,
    /// Nothing runs, and something is open.
    Between,
}

fn doing(script: &str) -> Doing {
    let mut tracker = idle();
    play(&mut tracker, script);
    assert!(!(tracker.is_idle() && tracker.is_running()), "{script}");
    if tracker.is_idle() {
        Doing::Idle
    } else if tracker.is_running() {
        Doing::Running
    } else {
        Doing::Between
    }
}

#[test]
fn session_is_what_its_messages_make_it() {
    use Doing::{Between, Idle, Running};
    let table = [
        // Simple.
        (">Q", Running),
        (">Q <TDC", Running),
        (">Q <TDCZI", Idle),
        (">Q <CZT", Between),
        (">Q <CZT >Q <EZE", Between),
        (">Q <CZT >Q <CZI", Idle),
        (">QQ <CZI", Running),
        (">QQ <CZICZI", Idle),
        (">F <VZI", Idle),
        // Unasked for.
        ("<A", Idle),
        ("<NSA", Idle),
        // Extended.
        (">PBDE", Running),
        (">PBDES <12TC", Running),
        (">PBDES <12TCZI", Idle),
        (">PBES >PBES <12CZI", Running),
        (">PBES >PBES <12CZI12CZI", Idle),
        (">PBES >Q <12CZI", Running),
        (">PDH <1", Running),
        (">PDH <1tT", Between),
        (">PDH <1tT >BES <2CZI", Idle),
        (">PBEH <12s >EH <C >S <ZI", Idle),
        (">SH <ZI", Idle),
        (">CS <3ZI", Idle),
        (">BES <2IZI", Idle),
        // Errors in a batch.
        (">PBES <E", Running),
        (">PBES <EZI", Idle),
        (">BE <E", Between),
        (">BE <E >PDH", Between),
        (">BE <E >PDH >S <ZI", Idle),
        (">BES <E >PDH <ZI", Running),
        (">BES <E >PDH <ZI1tT", Between),
        (">BES <E >PDH <ZI1tT >BES <2CZI", Idle),
        // A Query in an open batch: skipped if the batch fails, answered if it does not.
        (">PBEQ <12CTCZI", Idle),
        (">PBEQ <12E", Between),
        (">PBEQ <12E >S <ZI", Idle),
        (">PBEQS <12EZI", Idle),
        (">PBEQS <12CEZI", Running),
        (">PBEQS <12CEZIZI", Idle),
        (">PB <E >QQ >S <ZI", Idle),
        // COPY OUT.
        (">Q <Hdd", Running),
        (">Q <HddcCZI", Idle),
        (">PBES <12HdcC", Running),
        (">PBES <12HdcCZI", Idle),
        // COPY IN by Query.
        (">Q <G", Running),
        (">Q <G >dd", Running),
        (">Q <G >ddc <CZI", Idle),
        (">Q <G >ddf <EZI", Idle),
        (">Q <G >dSHSdc <CZI", Idle),
        (">Q <G >d <EZI", Idle),
        (">Q <G >d <EZI >dc", Idle),
        (">Q <G >d <EZI >dc >Q <TCZI", Idle),
        (">Q <G >d <EZI >dc >Q <G", Running),
        (">Q <G >d <EZI >dc >Q <G >c <CZI", Idle),
        (">Qdc <GCZI", Idle),
        (">Qdcdc <GCGCZI", Idle),
        (">Qdc >Q <GCZI", Running),
        (">Qdc >Q <GCZI <TDCZI", Idle),
        (">QdcQdc <GCZIGCZI", Running),
        (">Q <GG >c <C", Running),
        // COPY IN by Execute: the Sync that follows it at once is read as a part of it.
        (">PBES <12G", Running),
        (">PBES <12G >dc <C", Between),
        (">PBES <12G >dcS <C", Running),
        (">PBES <12G >dcS <CZI", Idle),
        (">PBES <12G >dfS <EZI", Idle),
        (">PBES <12G >d <E", Between),
        (">PBES <12G >d <E >S <ZI", Idle),
        (">PBEH <12G >dcS <CZI", Idle),
        (">PBEdcS <12GCZI", Idle),
        (">PBESdcS <12GCZI", Idle),
        (">PBESdcS <12EZI", Running),
        (">PBESdcS <12EZIZI", Idle),
        (">PBEdfS >PBES <12GE", Running),
        (">PBEdfS >PBES <12GEZI", Running),
        (">PBEdfS >PBES <12GEZI12CZI", Idle),
        (">PBESdfS >PBES <12GEZI12CZI", Idle),
        (">PBEdcS >Q <EZI <G", Running),
        (">PBEdcS >Q <EZI <G >c <CZI", Idle),
        (">PBEdc <12GE >QS <ZI", Idle),
        // A Sync that the failing COPY may or may not have read: settled by the next answer.
        (">Q <G >dS <EZI", Running),
        (">Q <G >dS <EZIZI", Idle),
        (">Q <G >dS <EZI >Q <TCZI", Idle),
        (">Q <G >dS <EZIZI >Q <TCZI", Idle),
        // COPY BOTH: until both have ended it and ReadyForQuery says so.
        (">Q <Wdd >d", Running),
        (">Q <Wdd >c", Running),
        (">Q <Wdd >c <c", Running),
        (">Q <Wdd >c <cCCZI", Idle),
        (">Q <Wddc >dc <CZI", Idle),
    ];
    for (script, expected) in table {
        assert_eq!(doing(script), expected, "{script}");
    }
}

#[test]
fn session_is_not_idle_before_its_first_ready_for_query_nor_after_terminate() {
    let mut tracker = Tracker::new();
    assert!(!tracker.is_idle() && tracker.is_running());
    tracker.backend(b"Z\0\0\0\x05I");
    assert!(tracker.is_idle());
    tracker.frontend(b"X\0\0\0\x04");
    assert!(tracker.is_terminated() && !tracker.is_idle());
}

#[test]
fn part_of_a_message_makes_a_session_busy_but_nothing_run() {
    let mut tracker = idle();
    tracker.frontend(b"Q\0\0");
    assert!(!tracker.is_idle() && !tracker.is_running() && !tracker.is_frontend_at_boundary());
    tracker.frontend(b"\0\x08sel");
    assert!(tracker.is_running());

    let mut tracker = idle();
    tracker.backend(b"N\0\0\0\x09not");
    assert!(!tracker.is_idle() && !tracker.is_backend_at_boundary());
    tracker.backend(b"\0\0");
    assert!(tracker.is_idle());
}

#[test]
fn session_that_lost_its_frames_is_never_idle_again() {
    let mut tracker = idle();
    tracker.frontend(b"Q\0\0\0\x01");
    tracker.backend(b"E\0\0\0\x04");
    assert!(!tracker.is_idle() && !tracker.is_frontend_at_boundary());
    assert!(tracker.is_backend_at_boundary() && tracker.ends_with_error());
}

/// ErrorResponse as PostgreSQL sends it.
fn error(code: &str) -> Vec<u8> {
    let body = format!("SERROR\0VERROR\0C{code}\0Minvalid role OID: 16390\0Fmiscinit.c\0\0");
    [b"E", &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], body.as_bytes()].concat()
}

#[test]
fn end_that_upstream_has_told_of_is_known_until_it_says_something_else() {
    for (code, ends) in
        [("57P01", true), ("57P02", true), ("25P03", true), ("57014", false), ("42P01", false)]
    {
        let mut tracker = idle();
        error(code).chunks(7).for_each(|piece| tracker.backend(piece));
        assert_eq!(tracker.ends_by_upstream(), ends, "{code}");
        tracker.backend(b"N\0\0\0\x05\0");
        assert!(!tracker.ends_by_upstream());
    }
}

#[test]
fn errors_that_the_end_of_a_role_would_explain_are_counted_wherever_they_are_cut() {
    let codes = ["42704", "22012", "42501", "42704", "57P01", "42P01"];
    // An error of the same words that is not ErrorResponse, and one without a body.
    let mut stream = b"E\0\0\0\x04".to_vec();
    stream.extend([b"N", &error("42704")[1..]].concat());
    stream.extend(codes.iter().flat_map(|code| [error(code), READY.to_vec()].concat()));
    for len in 1..=stream.len() {
        let mut tracker = idle();
        for piece in stream.chunks(len) {
            tracker.backend(piece);
        }
        let signs = Signs { insufficient_privilege: 1, undefined_object: 2, admin_shutdown: 1 };
        assert!(tracker.has_signs());
        assert_eq!(tracker.take_signs(), signs, "in pieces of {len}");
        assert!(!tracker.has_signs() && tracker.is_idle());
    }
}

/// What becomes of a message at the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Done,
    Fails,
    /// Query and Execute only: begins COPY IN.
    Copies,
}

/// The part of `PostgresMain` and of COPY that decides what is answered.
#[derive(Debug, Default)]
struct Server {
    inbox: VecDeque<(u8, Fate)>,
    outbox: VecDeque<u8>,
    skipping: bool,
    /// Whether by Query.
    copy: Option<bool>,
    dead: bool,
}

impl Server {
    fn step(&mut self) {
        let Some((tag, fate)) = self.inbox.pop_front() else { return };
        match self.copy {
            _ if self.dead => {}
            Some(by_query) => self.step_in_copy(by_query, tag, fate),
            None if self.skipping && tag != b'S' => {}
            None => self.step_at_large(tag, fate),
        }
    }

    fn step_in_copy(&mut self, by_query: bool, tag: u8, fate: Fate) {
        let answer = match (tag, fate) {
            (b'd', Fate::Fails) | (b'f', _) => b'E',
            (b'c', _) => b'C',
            (b'd' | b'H' | b'S', _) => return,
            _ => {
                self.dead = true;
                return self.outbox.push_back(b'E');
            }
        };
        self.copy = None;
        self.outbox.push_back(answer);
        if by_query {
            self.outbox.push_back(b'Z');
        } else {
            self.skipping = answer == b'E';
        }
    }

    fn step_at_large(&mut self, tag: u8, fate: Fate) {
        let answer: &[u8] = match (tag, fate) {
            (b'Q' | b'E', Fate::Copies) => {
                self.copy = Some(tag == b'Q');
                b"G"
            }
            (b'S', _) => {
                self.skipping = false;
                b"Z"
            }
            (b'Q' | b'F', Fate::Fails) => b"EZ",
            (b'Q', _) => b"TDCZ",
            (b'F', _) => b"VZ",
            (b'P' | b'B' | b'D' | b'C' | b'E', Fate::Fails) => {
                self.skipping = true;
                b"E"
            }
            (b'P', _) => b"1",
            (b'B', _) => b"2",
            (b'C', _) => b"3",
            (b'D', _) => b"tT",
            (b'E', _) => b"DC",
            _ => b"",
        };
        self.outbox.extend(answer);
    }

    /// Nothing but messages that are dropped or have no effect of their own.
    fn has_nothing_to_do(&self) -> bool {
        self.copy.is_none()
            && self.inbox.iter().all(|(tag, _)| b"SHdcf".contains(tag))
            && self.outbox.iter().all(|&tag| tag == b'Z')
    }
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Send(u8, Fate),
    Serve,
    Deliver,
}

fn moves(tags: &'static [u8]) -> impl Strategy<Value = Vec<Move>> {
    let fate = prop_oneof![5 => Just(Fate::Done), 2 => Just(Fate::Fails), 2 => Just(Fate::Copies)];
    let send = (prop::sample::select(tags), fate).prop_map(|(tag, fate)| Move::Send(tag, fate));
    prop::collection::vec(prop_oneof![3 => send, 3 => Just(Move::Serve), 4 => Just(Move::Deliver)], 0..60)
}

/// Plays `moves`; after each one an idle tracker must stand before a server with nothing to do.
fn run(moves: &[Move], tracker: &mut Tracker, server: &mut Server) -> Result<(), TestCaseError> {
    for &next in moves {
        match next {
            Move::Send(tag, fate) => {
                tracker.frontend(&message(tag, None));
                server.inbox.push_back((tag, fate));
            }
            Move::Serve => server.step(),
            Move::Deliver => deliver(tracker, server),
        }
        if server.dead {
            break;
        }
        prop_assert!(
            !tracker.is_idle() || server.has_nothing_to_do(),
            "idle after {next:?} at {server:?}: {tracker:?}"
        );
    }
    Ok(())
}

fn deliver(tracker: &mut Tracker, server: &mut Server) {
    if let Some(tag) = server.outbox.pop_front() {
        tracker.backend(&message(tag, (tag == b'Z').then_some(b'I')));
    }
}

fn settle(tracker: &mut Tracker, server: &mut Server) {
    while !server.inbox.is_empty() {
        server.step();
    }
    while !server.outbox.is_empty() {
        deliver(tracker, server);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a client sends in whatever order.
    #[test]
    fn idle_session_has_nothing_unanswered(moves in moves(b"QFSSPBDECHdcf")) {
        run(&moves, &mut idle(), &mut Server::default())?;
    }

    /// Of a client that ends its batches: once all is answered, the session is idle.
    #[test]
    fn session_is_idle_once_all_is_answered(moves in moves(b"QFPBDECHdcf")) {
        let mut sane = Vec::new();
        let mut batch = false;
        for next in moves {
            if let Move::Send(tag, _) = next {
                if b"QF".contains(&tag) && batch {
                    sane.push(Move::Send(b'S', Fate::Done));
                }
                batch = if b"QF".contains(&tag) { false } else { batch || b"PBDEC".contains(&tag) };
            }
            sane.push(next);
        }
        let (mut tracker, mut server) = (idle(), Server::default());
        run(&sane, &mut tracker, &mut server)?;
        settle(&mut tracker, &mut server);
        if server.copy.is_some() {
            run(&[Move::Send(b'c', Fate::Done)], &mut tracker, &mut server)?;
            settle(&mut tracker, &mut server);
        }
        run(&[Move::Send(b'S', Fate::Done)], &mut tracker, &mut server)?;
        settle(&mut tracker, &mut server);
        prop_assert!(server.dead || tracker.flow.unsure || tracker.is_idle(), "{tracker:?}");
    }

    #[test]
    fn cuts_change_nothing(
        frames in prop::collection::vec(
            (any::<bool>(), prop::sample::select(&b"QSPBEZCEGTdcfHX1"[..]), prop::collection::vec(any::<u8>(), 0..5)),
            0..20,
        ),
        cuts in prop::collection::vec(1usize..7, 1..40),
    ) {
        let (mut whole, mut cut) = (Tracker::new(), Tracker::new());
        let mut cuts = cuts.iter().cycle();
        for (from_client, tag, body) in frames {
            let mut frame = vec![tag, 0, 0, 0, u8::try_from(body.len() + 4).unwrap()];
            frame.extend(body);
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                if from_client { cut.frontend(piece) } else { cut.backend(piece) }
                rest = left;
            }
            if from_client { whole.frontend(&frame) } else { whole.backend(&frame) }
            prop_assert_eq!(&whole, &cut);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20)
    ) {
        let mut tracker = Tracker::new();
        for (from_client, piece) in pieces {
            if from_client { tracker.frontend(&piece) } else { tracker.backend(&piece) }
        }
    }
}
