//! Nothing of one session reaches another. Many sessions at once, in every state, with everything that may happen to
//! them; each byte that one is told carries its own mark, in its own order.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, BytesMut};
use fastrand::Rng;
use postgres_protocol::message::frontend;
use tokio::task::JoinSet;
use tokio::time::{self, Duration};

use crate::raw::{Message, Raw, packet, row, startup};
use crate::support::env;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_for, rotate, until};

/// What all workers see.
struct Stage {
    address: SocketAddr,
    world: World<'static>,
    /// The key that each worker's session has now: others try them in wrong ways.
    keys: Mutex<Vec<Vec<u8>>>,
    /// What each worker does, for who looks into a failure.
    doing: Mutex<Vec<String>>,
    steps: AtomicUsize,
    /// From here on pglease ends sessions, in the middle of a message if it must.
    is_closing: AtomicBool,
    is_over: AtomicBool,
    /// Sessions that pglease or a superuser has ended.
    ended: AtomicUsize,
}

/// The session is over, and has been told so.
#[derive(Debug)]
struct Ended;

type Step = Result<(), Ended>;

/// One session of a worker.
struct Session {
    stage: Arc<Stage>,
    worker: usize,
    raw: Raw,
    /// The body of its BackendKeyData.
    key: Vec<u8>,
    /// What no other session says.
    mark: String,
    /// Marks so far: each statement has its own.
    statements: usize,
    notes: Vec<String>,
    /// Its backend is killed in the middle of a message, and may not have said why.
    is_cut: bool,
}

impl Session {
    async fn begin(stage: &Arc<Stage>, worker: usize, number: usize) -> Result<Self, Ended> {
        let mut raw = Raw::connect(stage.address).await;
        let mark = format!("<w{worker:02}s{number:03}>");
        let database = stage.world.database();
        let parameters = [("user", "app"), ("database", &database), ("application_name", &mark)];
        raw.send(&startup(&parameters)).await;
        let mut session = Self {
            stage: Arc::clone(stage),
            worker,
            raw,
            key: Vec::new(),
            mark,
            statements: 0,
            notes: Vec::new(),
            is_cut: false,
        };
        loop {
            let message = session.next().await?;
            match message.tag {
                b'R' => assert_eq!(message.body, [0; 4]),
                b'K' => session.key = message.body,
                b'Z' => break,
                _ => panic!("{}: {message:?} in a greeting", session.mark),
            }
        }
        stage.keys.lock().unwrap()[worker].clone_from(&session.key);
        let sql = format!("SET app.mark = '{}'", session.mark);
        session.run(&sql, &["SET"]).await?;
        Ok(session)
    }

    /// A mark for one statement.
    fn mark(&mut self) -> String {
        self.statements += 1;
        format!("{}q{:04}.", self.mark, self.statements)
    }

    /// The next message that is the answer to something. What comes unasked is for this session, too. Cancel safe but
    /// for the words at an end.
    async fn next(&mut self) -> Result<Message, Ended> {
        loop {
            let Some(message) = self.raw.whole_message().await else {
                let may_end = self.is_cut || self.stage.is_closing.load(Ordering::Relaxed);
                assert!(may_end, "{}: ended without a word", self.mark);
                return Err(Ended);
            };
            match message.tag {
                b'S' | b'N' => {}
                b'A' => {
                    let note = String::from_utf8(message.body[4..].to_vec()).unwrap();
                    assert_eq!(message.body[..4], self.key[..4], "{}: another's pid", self.mark);
                    assert!(note.starts_with(&self.mark[1..4]), "{}: {note}", self.mark);
                    self.notes.push(note);
                }
                b'E' if message.fields().contains(&('C', "57P01".to_owned()))
                    || self.is_cut && message.fields().contains(&('C', "08006".to_owned())) =>
                {
                    // Where two of them end it at a time, one of them says so.
                    let more = self.raw.whole_message().await;
                    assert!(more.is_none(), "{}: {more:?} behind the end", self.mark);
                    return Err(Ended);
                }
                _ => return Ok(message),
            }
        }
    }

    async fn expect(&mut self, messages: &[(u8, Vec<u8>)]) -> Step {
        for (tag, body) in messages {
            let message = self.next().await?;
            let is_right = message.tag == *tag && message.body == *body;
            let cut = |bytes: &[u8]| bytes[..bytes.len().min(120)].escape_ascii().to_string();
            assert!(
                is_right,
                "{}: {} {} instead of {} {}",
                self.mark,
                char::from(message.tag),
                cut(&message.body),
                char::from(*tag),
                cut(body)
            );
        }
        Ok(())
    }

    async fn skip(&mut self, tag: u8) -> Step {
        let message = self.next().await?;
        assert_eq!(message.tag, tag, "{}: {message:?}", self.mark);
        Ok(())
    }

    async fn ready(&mut self, status: u8) -> Step {
        self.expect(&[(b'Z', vec![status])]).await
    }

    /// An error with this code, in which `words` occur.
    async fn error(&mut self, code: &str, words: &str) -> Step {
        let message = self.next().await?;
        let fields = message.fields();
        assert!(
            message.tag == b'E' && fields.contains(&('C', code.to_owned())),
            "{}: {message:?}",
            self.mark
        );
        assert!(fields.iter().any(|(_, text)| text.contains(words)), "{}: {message:?}", self.mark);
        Ok(())
    }

    /// Rows of a simple Query.
    async fn rows(&mut self, numbers: &mut Rng) -> Step {
        let (mark, count) = (self.mark(), numbers.usize(0..400));
        self.raw.query(&format!("SELECT '{mark}' || n FROM generate_series(1, {count}) n")).await;
        self.skip(b'T').await?;
        let rows: Vec<_> = (1..=count).map(|n| row(&format!("{mark}{n}"))).collect();
        self.expect(&rows).await?;
        self.expect(&[(b'C', format!("SELECT {count}\0").into_bytes())]).await?;
        self.ready(b'I').await
    }

    /// A pipeline of the extended protocol, all of it sent before anything is read.
    async fn pipeline(&mut self, numbers: &mut Rng) -> Step {
        let marks: Vec<_> = (0..numbers.usize(1..60)).map(|_| self.mark()).collect();
        let mut out = BytesMut::new();
        frontend::parse("", "SELECT $1::text", [], &mut out).unwrap();
        for mark in &marks {
            out.extend(bind(mark));
            frontend::execute("", 0, &mut out).unwrap();
        }
        frontend::sync(&mut out);
        // In two parts, cut anywhere.
        let rest = out.split_off(numbers.usize(..out.len()));
        self.raw.send(&out).await;
        self.raw.send(&rest).await;
        self.skip(b'1').await?;
        for mark in marks {
            self.expect(&[(b'2', Vec::new()), row(&mark), (b'C', b"SELECT 1\0".to_vec())]).await?;
        }
        self.ready(b'I').await
    }

    /// One row that fills every buffer on its way.
    async fn big_row(&mut self, numbers: &mut Rng) -> Step {
        let (mark, times) = (self.mark(), numbers.usize(1000..30_000));
        self.raw.query(&format!("SELECT repeat('{mark}', {times})")).await;
        self.skip(b'T').await?;
        self.expect(&[row(&mark.repeat(times)), (b'C', b"SELECT 1\0".to_vec())]).await?;
        self.ready(b'I').await
    }

    async fn copy_out(&mut self, numbers: &mut Rng) -> Step {
        let (mark, count) = (self.mark(), numbers.usize(1..2000));
        self.raw
            .query(&format!("COPY (SELECT '{mark}' || n FROM generate_series(1, {count}) n) TO STDOUT"))
            .await;
        self.skip(b'H').await?;
        let lines: Vec<_> = (1..=count).map(|n| (b'd', format!("{mark}{n}\n").into_bytes())).collect();
        self.expect(&lines).await?;
        self.expect(&[(b'c', Vec::new()), (b'C', format!("COPY {count}\0").into_bytes())]).await?;
        self.ready(b'I').await
    }

    async fn copy_in(&mut self, numbers: &mut Rng) -> Step {
        let (mark, count) = (self.mark(), numbers.usize(1..3000));
        self.raw
            .query("BEGIN; CREATE TEMP TABLE lines (line text) ON COMMIT DROP; COPY lines FROM STDIN")
            .await;
        self.expect(&[(b'C', b"BEGIN\0".to_vec()), (b'C', b"CREATE TABLE\0".to_vec())]).await?;
        self.skip(b'G').await?;
        let mut out = BytesMut::new();
        for n in 1..=count {
            frontend::CopyData::new(format!("{mark}{n}\n").as_bytes()).unwrap().write(&mut out);
        }
        frontend::copy_done(&mut out);
        self.raw.send(&out).await;
        self.expect(&[(b'C', format!("COPY {count}\0").into_bytes())]).await?;
        self.ready(b'T').await?;
        let sql = "SELECT concat(count(*), count(DISTINCT line), min(left(line, length($m$MARK$m$))), max(left(line, length($m$MARK$m$)))) FROM lines; COMMIT";
        self.raw.query(&sql.replace("MARK", &mark)).await;
        self.skip(b'T').await?;
        self.expect(&[row(&format!("{count}{count}{mark}{mark}")), (b'C', b"SELECT 1\0".to_vec())]).await?;
        self.expect(&[(b'C', b"COMMIT\0".to_vec())]).await?;
        self.ready(b'I').await
    }

    /// A statement without rows.
    async fn run(&mut self, sql: &str, tags: &[&str]) -> Step {
        self.raw.query(sql).await;
        for tag in tags {
            self.expect(&[(b'C', format!("{tag}\0").into_bytes())]).await?;
        }
        self.ready(b'I').await
    }

    async fn notification(&mut self) -> Step {
        let (mark, channel) = (self.mark(), self.mark[1..4].to_owned());
        self.run(&format!("LISTEN {channel}"), &["LISTEN"]).await?;
        self.notes.clear();
        self.run(&format!("NOTIFY {channel}, '{mark}'; NOTIFY {channel}"), &["NOTIFY", "NOTIFY"]).await?;
        self.run(&format!("UNLISTEN {channel}"), &["UNLISTEN"]).await?;
        assert_eq!(self.notes, [format!("{channel}\0{mark}\0"), format!("{channel}\0\0")]);
        Ok(())
    }

    /// An error, outside of a transaction and in one.
    async fn errors(&mut self) -> Step {
        let mark = self.mark();
        self.raw.query(&format!("SELECT '{mark}'::int")).await;
        self.error("22P02", &mark).await?;
        self.ready(b'I').await?;
        self.raw.query(&format!("BEGIN; SELECT '{mark}'::int; SELECT 1")).await;
        self.expect(&[(b'C', b"BEGIN\0".to_vec())]).await?;
        self.error("22P02", &mark).await?;
        self.ready(b'E').await?;
        self.run("ROLLBACK", &["ROLLBACK"]).await
    }

    /// What was set when the session began, and who it is.
    async fn state(&mut self) -> Step {
        self.raw
            .query(
                "SELECT concat(current_setting('app.mark'), current_setting('application_name'), pg_backend_pid())",
            )
            .await;
        self.skip(b'T').await?;
        let pid = i32::from_be_bytes(self.key[..4].try_into().unwrap());
        let mark = self.mark.clone();
        self.expect(&[row(&format!("{mark}{mark}{pid}")), (b'C', b"SELECT 1\0".to_vec())]).await?;
        self.ready(b'I').await
    }

    /// A statement that only its own key ends.
    async fn cancelled(&mut self) -> Step {
        let mark = self.mark();
        self.raw.query(&format!("SELECT pg_sleep(600), '{mark}'")).await;
        // The first may come before the statement does. Each has been acted upon when its connection ends, so none
        // of them is left for the statement that follows.
        let message = loop {
            self.does(&format!("a cancel of {mark} is on its way"));
            let mut canceller = Raw::connect(self.stage.address).await;
            canceller.send(&packet(CANCEL_REQUEST, &self.key)).await;
            assert_eq!(canceller.bytes().await, b"", "{mark}");
            self.does(&format!("a cancel of {mark} was acted upon"));
            // What comes unasked is no answer, nor is the head of rows that never come.
            let answer = time::timeout(MOMENT, self.next()).await.ok().transpose()?;
            if let Some(answer) = answer.filter(|answer| answer.tag != b'T') {
                break answer;
            }
        };
        let is_cancelled = message.tag == b'E' && message.fields().contains(&('C', "57014".to_owned()));
        assert!(is_cancelled, "{mark}: {message:?}");
        self.ready(b'I').await
    }

    /// For who looks into a failure.
    fn does(&self, what: &str) {
        what.clone_into(&mut self.stage.doing.lock().unwrap()[self.worker]);
    }

    /// Its backend is terminated, idle or in the middle of a long answer.
    async fn terminated(&mut self, numbers: &mut Rng) -> Step {
        let is_busy = numbers.bool();
        if is_busy {
            let mark = self.mark();
            self.raw.query(&format!("SELECT repeat('{mark}', 1000) FROM generate_series(1, 100000)")).await;
            self.skip(b'T').await?;
            self.is_cut = true;
        }
        let pid = i32::from_be_bytes(self.key[..4].try_into().unwrap());
        self.stage.world.superuser.rows(&format!("SELECT pg_terminate_backend({pid})")).await;
        let mark = self.mark.clone();
        loop {
            let message = self.next().await?;
            // The answer up to there is its own.
            assert_eq!(message.tag, b'D', "{mark}: {message:?}");
            assert!(message.body[6..].starts_with(mark.as_bytes()), "{mark}: another's row");
        }
    }

    /// Goes away in the middle of what it is told or of what it says.
    async fn vanish(mut self, numbers: &mut Rng) {
        let mark = self.mark();
        if numbers.bool() {
            self.raw.query(&format!("SELECT repeat('{mark}', 1000) FROM generate_series(1, 10000)")).await;
            let _ = self.skip(b'T').await;
        } else {
            let mut out = BytesMut::new();
            frontend::query(&format!("SELECT '{mark}'"), &mut out).unwrap();
            let len = numbers.usize(..out.len());
            self.raw.send(&out[..len]).await;
        }
    }
}

/// Bind of the unnamed statement to this one text.
fn bind(text: &str) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0, 0, 1];
    body.put_u32(u32::try_from(text.len()).unwrap());
    body.extend_from_slice(text.as_bytes());
    body.extend([0, 0]);
    let len = u32::try_from(body.len() + 4).unwrap();
    [b"B", &len.to_be_bytes()[..], &body].concat()
}

/// Tries keys that are none, made of another's and of its own.
async fn guess(stage: &Stage, own: Vec<u8>, numbers: &mut Rng) {
    let other = {
        let keys = stage.keys.lock().unwrap();
        keys[numbers.usize(..keys.len())].clone()
    };
    if other.is_empty() || other == own {
        return;
    }
    let guesses = [
        [&other[..4], &own[4..]].concat(),
        [&own[..4], &other[4..]].concat(),
        other[..other.len() - 1].to_vec(),
        [&other[..], b"\0"].concat(),
    ];
    for guess in guesses {
        let mut canceller = Raw::connect(stage.address).await;
        canceller.send(&packet(CANCEL_REQUEST, &guess)).await;
        if numbers.bool() {
            assert_eq!(canceller.bytes().await, b"");
        }
    }
}

/// Sessions one after the other until all is over.
async fn work(stage: Arc<Stage>, worker: usize, mut numbers: Rng) {
    let mut session_number = 0;
    let (mut steps, mut session) = (0, None);
    while steps < STEPS || !stage.is_over.load(Ordering::Relaxed) {
        let mut open: Session = if let Some(open) = session.take() {
            open
        } else {
            session_number += 1;
            stage.doing.lock().unwrap()[worker] = format!("begins session {session_number}");
            match Session::begin(&stage, worker, session_number).await {
                Ok(open) => open,
                Err(Ended) => continue,
            }
        };
        steps += 1;
        stage.steps.fetch_add(1, Ordering::Relaxed);
        let step = numbers.u8(..14);
        stage.doing.lock().unwrap()[worker] = format!("step {step} of {} q{}", open.mark, open.statements);
        let step = match step {
            0 | 1 => open.rows(&mut numbers).await,
            2 | 3 => open.pipeline(&mut numbers).await,
            4 => open.big_row(&mut numbers).await,
            5 => open.copy_out(&mut numbers).await,
            6 => open.copy_in(&mut numbers).await,
            7 => open.notification().await,
            8 => open.errors().await,
            9 => open.state().await,
            10 => open.cancelled().await,
            11 => {
                guess(&stage, open.key.clone(), &mut numbers).await;
                Ok(())
            }
            12 => open.terminated(&mut numbers).await,
            _ => {
                open.vanish(&mut numbers).await;
                continue;
            }
        };
        match step {
            Ok(()) => session = Some(open),
            Err(Ended) => {
                stage.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[tokio::test]
async fn no_session_ever_gets_anything_of_another() {
    // The same numbers each time, unless others are wanted.
    let seed = env("PGLEASE_TEST_SEED").map_or(8, |seed| seed.parse().unwrap());
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let stage = Arc::new(Stage {
        address: pglease.addresses()[0],
        world,
        keys: Mutex::new(vec![Vec::new(); WORKERS]),
        doing: Mutex::new(vec![String::new(); WORKERS]),
        steps: AtomicUsize::new(0),
        is_closing: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        ended: AtomicUsize::new(0),
    });

    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let numbers = Rng::with_seed(seed * 1000 + u64::try_from(worker).unwrap());
        workers.spawn(work(Arc::clone(&stage), worker, numbers));
    }
    let leases = async {
        let steps = |count| {
            let stage = Arc::clone(&stage);
            until(async move || stage.steps.load(Ordering::Relaxed) >= count)
        };
        steps(WORKERS * STEPS / 3).await;
        rotate(&pglease, &[]).await;
        steps(WORKERS * STEPS * 2 / 3).await;
        let ended_before = stage.ended.load(Ordering::Relaxed);
        // The lease of all that have not come anew ends.
        stage.is_closing.store(true, Ordering::Relaxed);
        rotate(&pglease, &["--close"]).await;
        until(async || stage.ended.load(Ordering::Relaxed) > ended_before).await;
        stage.is_over.store(true, Ordering::Relaxed);
        // Those that are at work find out when they next look.
        std::future::pending::<()>().await;
    };
    let fail = |why: &str| -> () {
        let (doing, log) = (stage.doing.lock().unwrap(), pglease.lines().tail());
        panic!("with PGLEASE_TEST_SEED={seed}: {why}\n{doing:?}\n{log}")
    };
    let working = async {
        while let Some(worked) = workers.join_next().await {
            worked.unwrap_or_else(|error| fail(&error.to_string()));
        }
    };
    let played = async {
        tokio::select! {
            () = working => {}
            () = leases => {}
        }
    };
    // What waits for ever is to say what for.
    time::timeout(PATIENCE * 3, played).await.unwrap_or_else(|_| fail("it does not come to its end"));
    assert!(pglease.events("session.panic").is_empty());
    let delivered = pglease.metric("pglease_cancel_requests_total", "delivered").await;
    let missed = pglease.metric("pglease_cancel_requests_total", "miss").await;
    assert!(delivered > 0.0 && missed > 0.0);
}

const CANCEL_REQUEST: u32 = 80_877_102;
/// Between two cancels of what may not have begun.
const MOMENT: Duration = Duration::from_millis(50);

const WORKERS: usize = 40;
/// Of each worker, at least.
const STEPS: usize = 14;
