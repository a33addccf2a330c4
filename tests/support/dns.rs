//! A name server of one name, for a resolver of one's own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// Answers on a loopback address of its own, on the port that `resolv.conf` cannot change, until the process ends.
pub(crate) struct NameServer {
    pub(crate) address: Ipv4Addr,
    socket: UdpSocket,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Without it, nothing is answered.
    known: Option<&'static str>,
    asked: Vec<String>,
    /// Asked while nothing was answered, and by whom.
    unanswered: Vec<(Vec<u8>, SocketAddr)>,
}

impl NameServer {
    /// Fails where one may not listen on that port.
    pub(crate) fn start() -> io::Result<Self> {
        let (address, socket) = loop {
            let address = Ipv4Addr::new(127, fastrand::u8(64..128), fastrand::u8(..), fastrand::u8(2..255));
            match UdpSocket::bind((address, 53)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => break (address, bound?),
            }
        };
        let state = Arc::new(Mutex::new(State::default()));
        let (asked_at, shared) = (socket.try_clone()?, Arc::clone(&state));
        thread::spawn(move || {
            let mut query = [0; 1232];
            while let Ok((len, peer)) = asked_at.recv_from(&mut query) {
                let Some(question) = Question::parse(&query[..len]) else { continue };
                let mut state = shared.lock().unwrap();
                match state.known {
                    Some(name) => {
                        let _ = asked_at.send_to(&question.answer(name), peer);
                    }
                    None => state.unanswered.push((query[..len].to_vec(), peer)),
                }
                state.asked.push(question.name);
            }
        });
        Ok(Self { address, socket, state })
    }

    /// From here on it answers, also what it was asked before, and knows this name alone, as 127.0.0.1.
    pub(crate) fn know(&self, name: &'static str) {
        let mut state = self.state.lock().unwrap();
        state.known = Some(name);
        for (query, peer) in state.unanswered.drain(..) {
            if let Some(question) = Question::parse(&query) {
                let _ = self.socket.send_to(&question.answer(name), peer);
            }
        }
    }

    /// From here on it does not answer, as at first.
    pub(crate) fn hush(&self) {
        self.state.lock().unwrap().known = None;
    }

    /// Every name that was asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
}

/// RFC 1035, section 4.1.2.
struct Question<'a> {
    id: &'a [u8],
    /// Labels, type and class as they came.
    raw: &'a [u8],
    name: String,
    wants_ipv4: bool,
}

impl<'a> Question<'a> {
    fn parse(query: &'a [u8]) -> Option<Self> {
        let mut labels = Vec::new();
        let mut at = HEADER_LEN;
        loop {
            let len = usize::from(*query.get(at)?);
            if len == 0 {
                break;
            }
            labels.push(std::str::from_utf8(query.get(at + 1..=at + len)?).ok()?);
            at += len + 1;
        }
        let raw = query.get(HEADER_LEN..at + 5)?;
        let wants_ipv4 = query.get(at + 1..at + 3)? == A;
        Some(Self { id: &query[..2], raw, name: labels.join("."), wants_ipv4 })
    }

    /// The address, nothing of that kind, or no such name.
    fn answer(&self, known: &str) -> Vec<u8> {
        let is_known = self.name == known;
        let has_address = is_known && self.wants_ipv4;
        let mut answer = self.id.to_vec();
        answer.extend(if is_known { [0x81, 0x80] } else { [0x81, 0x83] });
        answer.extend([0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
        answer.extend(self.raw);
        if has_address {
            // The name of the question, A, IN, for 5 seconds, 4 bytes.
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 0, 1]);
        }
        answer
    }
}

const HEADER_LEN: usize = 12;
const A: [u8; 2] = [0, 1];
