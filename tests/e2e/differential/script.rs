//! What is played: steps of one or more clients.

use super::say;

/// A client of the script.
pub(super) type Who = usize;

/// What clients call themselves and where they go: the two legs differ in that alone.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) user: String,
    pub(super) database: String,
    /// PostgreSQL's.
    pub(super) major: u16,
}

#[derive(Clone)]
pub(super) enum Step {
    /// A connection, on which nothing is said.
    Open(Who),
    Send(Who, Vec<u8>),
    /// Reads so many messages.
    Read(Who, usize),
    /// Reads up to so many ReadyForQuery.
    Ready(Who, usize),
    /// Reads up to the first message of this kind.
    Until(Who, u8),
    /// Reads the one byte that answers a request for encryption.
    Byte(Who),
    /// Shakes hands for TLS, offering this protocol of the application layer.
    Tls(Who, Option<&'static str>),
    /// Reads up to the end.
    End(Who),
    /// Says that nothing more comes, and reads up to the end.
    Finish(Who),
    /// Proves by SCRAM that it knows this password, up to AuthenticationOk or an error.
    Prove(Who, &'static str),
    /// Vanishes: a RST where the transport has it.
    Reset(Who),
    /// Over a connection of its own, with the key that this client got; done with the end of that connection.
    Cancel(Who, Key),
    /// Until the superuser gets a row for this. `{0}` is the pid of client 0.
    Await(String),
    Superuser(String),
}

/// What a CancelRequest brings.
#[derive(Clone, Copy)]
pub(super) enum Key {
    Right,
    WrongSecret,
    WrongPid,
    Short,
    Long,
}

/// One exchange.
#[expect(clippy::struct_excessive_bools, reason = "each is a word of its own on how it may be played")]
#[derive(Clone)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
    /// Where the next step is.
    who: Who,
    /// It means the same in whatever pieces its bytes come.
    pub(super) may_be_cut: bool,
    /// And also if all is sent before anything is read.
    pub(super) may_be_merged: bool,
    /// Others are much like it: one way of playing it is enough.
    pub(super) is_one_of_many: bool,
    /// It has its own answers to who asks for a proof.
    pub(super) is_of_authentication: bool,
}

impl Script {
    /// A client that has connected.
    pub(super) fn bare(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            steps: vec![Step::Open(0)],
            who: 0,
            may_be_cut: true,
            may_be_merged: false,
            is_one_of_many: false,
            is_of_authentication: false,
        }
    }

    /// A client that has been asked for a proof.
    pub(super) fn asked(name: impl Into<String>, names: &Names) -> Self {
        Self::bare(name).send(names.startup(&[])).read(1).answers()
    }

    /// It has its own answers to who asks for a proof.
    pub(super) fn answers(self) -> Self {
        Self { is_of_authentication: true, ..self }
    }

    /// A client whose session has begun.
    pub(super) fn session(name: impl Into<String>, names: &Names) -> Self {
        let script = Self::bare(name).send(names.startup(&[])).ready(1);
        Self { may_be_merged: true, ..script }
    }

    /// One that begins with these parameters as well.
    pub(super) fn session_with(name: impl Into<String>, names: &Names, parameters: &[(&str, &str)]) -> Self {
        let script = Self::bare(name).send(names.startup(parameters)).ready(1);
        Self { may_be_merged: true, ..script }
    }

    /// One more client whose session has begun, and which has the next steps.
    pub(super) fn also(self, who: Who, names: &Names) -> Self {
        let script = self.on(who).step(Step::Open(who)).send(names.startup(&[])).ready(1);
        Self { may_be_merged: false, ..script }
    }

    /// The next steps are this client's.
    pub(super) fn on(self, who: Who) -> Self {
        Self { who, ..self }
    }

    pub(super) fn send(self, bytes: impl Into<Vec<u8>>) -> Self {
        let who = self.who;
        self.step(Step::Send(who, bytes.into()))
    }

    /// Sends, and reads up to ReadyForQuery.
    pub(super) fn ask(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.send(bytes).ready(1)
    }

    pub(super) fn query(self, sql: impl AsRef<[u8]>) -> Self {
        self.ask(say::query(sql))
    }

    pub(super) fn read(self, count: usize) -> Self {
        let who = self.who;
        self.step(Step::Read(who, count))
    }

    pub(super) fn ready(self, count: usize) -> Self {
        let who = self.who;
        self.step(Step::Ready(who, count))
    }

    pub(super) fn until(self, tag: u8) -> Self {
        let who = self.who;
        self.step(Step::Until(who, tag))
    }

    pub(super) fn byte(self) -> Self {
        let who = self.who;
        self.step(Step::Byte(who))
    }

    pub(super) fn tls(self, protocol: Option<&'static str>) -> Self {
        let who = self.who;
        self.step(Step::Tls(who, protocol))
    }

    pub(super) fn end(self) -> Self {
        let who = self.who;
        self.step(Step::End(who))
    }

    pub(super) fn finish(self) -> Self {
        let who = self.who;
        self.step(Step::Finish(who))
    }

    pub(super) fn prove(self, password: &'static str) -> Self {
        let who = self.who;
        self.step(Step::Prove(who, password))
    }

    pub(super) fn reset(self) -> Self {
        let who = self.who;
        self.alone().step(Step::Reset(who))
    }

    pub(super) fn cancel(self, of: Who, key: Key) -> Self {
        self.alone().step(Step::Cancel(of, key))
    }

    pub(super) fn awaits(self, sql: impl Into<String>) -> Self {
        self.alone().step(Step::Await(sql.into()))
    }

    pub(super) fn superuser(self, sql: impl Into<String>) -> Self {
        self.alone().step(Step::Superuser(sql.into()))
    }

    /// What it sends before it reads depends on what it has read, or would fill the buffers of both sides.
    pub(super) fn alone(self) -> Self {
        Self { may_be_merged: false, ..self }
    }

    /// What it sends is another thing in other pieces.
    pub(super) fn whole(self) -> Self {
        Self { may_be_cut: false, may_be_merged: false, ..self }
    }

    /// Others are much like it.
    pub(super) fn one_of_many(self) -> Self {
        Self { is_one_of_many: true, ..self }
    }

    /// A number that is this script's in every run.
    pub(super) fn seed(&self) -> u64 {
        let bytes = self.name.bytes().map(u64::from);
        bytes.fold(7, |seed, byte| u64::wrapping_mul(seed, 31).wrapping_add(byte))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// All that it sends.
    pub(super) fn said(&self) -> impl Iterator<Item = &[u8]> {
        self.steps
            .iter()
            .filter_map(|step| if let Step::Send(_, bytes) = step { Some(bytes.as_slice()) } else { None })
    }

    /// The same with everything said in one go, before anything is read.
    pub(super) fn merged(&self) -> Vec<Step> {
        let said = self.said().collect::<Vec<_>>().concat();
        let heard = self.steps.iter().filter(|step| !matches!(step, Step::Send(..) | Step::Open(_)));
        let begin = [Step::Open(0), Step::Send(0, said)];
        begin.into_iter().chain(heard.cloned()).collect()
    }
}

impl Names {
    /// The StartupMessage of a client that wants nothing unusual, and `more`.
    pub(super) fn startup(&self, more: &[(&str, &str)]) -> Vec<u8> {
        let usual = [("user", self.user.as_str()), ("database", self.database.as_str())];
        say::startup(PROTOCOL_3_0, &[&usual, more].concat())
    }
}

pub(super) const PROTOCOL_3_0: u32 = 0x0003_0000;
