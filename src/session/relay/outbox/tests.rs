use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use super::*;

#[derive(Debug, Default)]
struct Sender(AtomicU32);

impl Sender {
    fn woken(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Sender {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An outbox that sends by one call, and one on a system that has no such call.
fn outboxes() -> [Outbox; 2] {
    let outbox = |batch| Outbox { carrier: Some(Waker::noop().clone()), batch, ..Outbox::new() };
    [outbox(Some(Batch::new().unwrap())), outbox(None)]
}

fn sockets() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn post(outbox: &mut Outbox, to: &impl AsRawFd, bytes: &[u8], sender: &Arc<Sender>) -> Posted {
    outbox.room()[..bytes.len()].copy_from_slice(bytes);
    let read = outbox.read(bytes.len());
    assert_eq!(outbox.bytes(&read), bytes);
    assert!(outbox.takes(&read));
    outbox.post(to.as_raw_fd(), read, &Context::from_waker(&Waker::from(Arc::clone(sender))))
}

/// The byte that is sent at `at`.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// What has come, up to now.
fn come(far: &mut UnixStream) -> Vec<u8> {
    let mut read = Vec::new();
    let error = far.read_to_end(&mut read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    read
}

#[test]
fn what_is_posted_goes_out_together_and_each_learns_what_became_of_its_own() {
    for mut outbox in outboxes() {
        let sender = Arc::new(Sender::default());
        let (near, mut far) = sockets();
        let (mut full, mut far_of_full) = sockets();
        while full.write(&[0; 1000]).is_ok() {}
        let (broken, gone) = sockets();
        drop(gone);

        let first = post(&mut outbox, &near, b"first", &sender);
        let not_taken = post(&mut outbox, &full, b"not taken", &sender);
        let lost = post(&mut outbox, &broken, b"lost", &sender);
        let last = post(&mut outbox, &near, b", last", &sender);
        assert!(come(&mut far).is_empty() && outbox.has(first) && outbox.has(last));

        outbox.send();
        assert_eq!(come(&mut far), b"first, last");
        assert!(!outbox.has(first) && !outbox.has(last));
        assert_eq!(sender.woken(), 2, "by what was not taken and what is lost");
        assert!(outbox.falls_short(not_taken) && !outbox.falls_short(last));
        assert_eq!(outbox.take_back(not_taken).unwrap(), b"not taken");
        assert_eq!(outbox.take_back(lost).unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert!(outbox.take_back(first).unwrap().is_empty() && outbox.take_back(last).unwrap().is_empty());
        assert!(outbox.returned.is_empty());
        assert!(!come(&mut far_of_full).ends_with(b"not taken"));
    }
}

#[test]
fn part_that_a_socket_takes_is_not_given_back() {
    for mut outbox in outboxes() {
        let sender = Arc::new(Sender::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        let other = sockets();
        let mut sent = 0;
        let rest = loop {
            let letter: Vec<_> = (sent..sent + LETTER_LEN).map(pattern).collect();
            let posted = post(&mut outbox, &near, &letter, &sender);
            post(&mut outbox, &other.0, b"beside", &sender);
            sent += letter.len();
            let rest = outbox.take_back(posted).unwrap();
            if !rest.is_empty() {
                break rest;
            }
        };
        near.set_nonblocking(false).unwrap();
        let reading = std::thread::spawn(move || {
            let mut all = vec![0; sent];
            far.read_exact(&mut all).unwrap();
            all
        });
        near.write_all(&rest).unwrap();
        let all = reading.join().unwrap();
        assert!(all.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    }
}

#[test]
fn outbox_that_is_full_is_sent_at_once() {
    for mut outbox in outboxes() {
        let (near, mut far) = sockets();
        let sender = Arc::new(Sender::default());
        for _ in 0..batch::MAX - 1 {
            post(&mut outbox, &near, b"1", &sender);
        }
        assert!(come(&mut far).is_empty());
        post(&mut outbox, &near, b"1", &sender);
        assert_eq!(come(&mut far), [b'1'; batch::MAX]);

        let letter = vec![b'2'; LETTER_LEN];
        for _ in 0..LETTERS_LEN / LETTER_LEN {
            post(&mut outbox, &near, &letter, &sender);
        }
        assert!(come(&mut far).is_empty());
        let last = post(&mut outbox, &near, b"3", &sender);
        assert!(!outbox.has(last));
        assert_eq!(come(&mut far).len(), LETTERS_LEN + 1);
        assert_eq!(outbox.room().len(), READ_LEN);
        assert_eq!(sender.woken(), 0);
    }
}

#[test]
fn nothing_waits_without_a_carrier_and_nothing_long_with_one() {
    let mut outbox = Outbox::new();
    let read = outbox.read(1);
    assert!(!outbox.takes(&read));
    outbox.carrier = Some(Waker::noop().clone());
    outbox.room();
    let (short, long) = (outbox.read(LETTER_LEN), outbox.read(LETTER_LEN + 1));
    assert!(outbox.takes(&short) && !outbox.takes(&long));
}

#[test]
fn who_is_alone_is_asked_once_in_a_while_only() {
    for mut outbox in outboxes() {
        let (near, _far) = sockets();
        let sender = Arc::new(Sender::default());
        let mut turn = |letters| {
            for _ in 0..letters {
                post(&mut outbox, &near, b"1", &sender);
            }
            outbox.end_turn();
            let read = outbox.read(1);
            (0..99).take_while(|_| !outbox.takes(&read)).count()
        };
        let mut turns = |letters: usize, count| (0..count).map(|_| turn(letters)).collect::<Vec<_>>();
        // How many reads each turn had refused behind it.
        assert_eq!(turns(1, 7), [0; 7]);
        assert_eq!(turns(1, 3), [32; 3]);
        assert_eq!(turns(2, 1), [0]);
        assert_eq!(turns(1, 7), [0; 7]);
        assert_eq!(turns(0, 1), [0]);
        assert_eq!(turns(1, 8)[7], 32);
    }
}
