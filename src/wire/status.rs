//! What a session is doing, as far as its bytes tell: the state that a server keeps, followed from the headers of
//! both directions. Keeps no message and allocates nothing.
//!
//! The count behind it: each Query, `FunctionCall` and Sync is answered by one ReadyForQuery. Four things
//! disturb it.
//!
//! - After an error in the extended protocol the server skips everything up to the next Sync, Queries too.
//! - During COPY IN it reads Sync and Flush as if they were not there.
//! - CopyDone and CopyFail may have been sent before `CopyInResponse` has come, or after the COPY has failed.
//! - A Sync that was sent during a COPY that fails may have been read before the failure or after it.
//!
//! Where the bytes leave two readings, the session counts as busy until they leave one.
//!
//! Flush alone does not make a session busy: nothing answers it, and the server keeps nothing of it.
//!
//! Of ErrorResponse the SQLSTATE is read as well, for [`Signs`] that the session's role has ended.

use super::error::SqlState;
use super::frame::{FrameScanner, Show};
use super::message::backend::{
    BIND_COMPLETE, CLOSE_COMPLETE, COMMAND_COMPLETE, COPY_IN_RESPONSE, EMPTY_QUERY_RESPONSE, ERROR_RESPONSE,
    NO_DATA, NOTICE_RESPONSE, NOTIFICATION_RESPONSE, PARAMETER_STATUS, PARSE_COMPLETE, PORTAL_SUSPENDED,
    READY_FOR_QUERY, ROW_DESCRIPTION,
};
use super::message::frontend::{
    BIND, CLOSE, COPY_DATA, COPY_DONE, COPY_FAIL, DESCRIBE, EXECUTE, FUNCTION_CALL, PARSE, QUERY, SYNC,
    TERMINATE,
};
use super::sqlstate::SqlStateReader;

/// Follows one session from the first byte behind BackendKeyData.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tracker {
    frontend: FrameScanner,
    backend: FrameScanner,
    flow: Flow,
    /// Of the last ErrorResponse.
    error: SqlStateReader,
    /// Its code, if it has one.
    code: Option<SqlState>,
    signs: Signs,
}

/// How many errors upstream has sent that the end of the session's role would explain. All but the last have everyday
/// reasons as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    /// 42501: a right is missing, as after the `REVOKE` that comes before `DROP ROLE`.
    pub(crate) insufficient_privilege: u32,
    /// 42704: something does not exist, as the role in PostgreSQL's "invalid role OID".
    pub(crate) undefined_object: u32,
    /// 57P01: the session was ended, as by `pg_terminate_backend` in revocation statements.
    pub(crate) admin_shutdown: u32,
}

impl Signs {
    const NONE: Self = Self { insufficient_privilege: 0, undefined_object: 0, admin_shutdown: 0 };

    fn note(&mut self, code: SqlState) {
        let count = match code {
            SqlState::INSUFFICIENT_PRIVILEGE => &mut self.insufficient_privilege,
            SqlState::UNDEFINED_OBJECT => &mut self.undefined_object,
            SqlState::ADMIN_SHUTDOWN => &mut self.admin_shutdown,
            _ => return,
        };
        *count = count.saturating_add(1);
    }
}

impl Tracker {
    /// Of a session whose first ReadyForQuery is still to come.
    pub(crate) fn new() -> Self {
        Self {
            frontend: FrameScanner::default(),
            backend: FrameScanner::default(),
            flow: Flow::new(),
            error: SqlStateReader::default(),
            code: None,
            signs: Signs::NONE,
        }
    }

    /// Takes bytes from the client, in the order in which they go to upstream.
    pub(crate) fn frontend(&mut self, bytes: &[u8]) {
        #[cfg(test)]
        bug::meet(bytes);
        let Self { frontend, flow, .. } = self;
        frontend.scan(bytes, |_| None, |tag, _| flow.on_frontend(tag));
    }

    /// Takes bytes from upstream, in the order in which they go to the client.
    pub(crate) fn backend(&mut self, bytes: &[u8]) {
        #[cfg(test)]
        bug::meet(bytes);
        let Self { backend, flow, error, code, signs, .. } = self;
        let show = |tag| match tag {
            READY_FOR_QUERY => Some(Show::First),
            ERROR_RESPONSE => Some(Show::Body),
            _ => None,
        };
        backend.scan(bytes, show, |tag, part| match (tag, part) {
            (ERROR_RESPONSE, [_, ..]) => {
                if let Some(read) = error.read(part) {
                    signs.note(read);
                    *code = Some(read);
                }
            }
            (ERROR_RESPONSE, []) => {
                (*error, *code) = (SqlStateReader::default(), None);
                flow.on_backend(tag, None);
            }
            _ => flow.on_backend(tag, part.first().copied()),
        });
    }

    /// Whether there are any since they were last taken.
    pub(crate) fn has_signs(&self) -> bool {
        self.signs != Signs::NONE
    }

    /// Those since the last call.
    pub(crate) fn take_signs(&mut self) -> Signs {
        std::mem::replace(&mut self.signs, Signs::NONE)
    }

    /// Whether the session could end here without the client losing anything: outside a transaction, all that
    /// was sent has been answered, and neither side is within a message.
    pub(crate) fn is_idle(&self) -> bool {
        self.flow.is_idle() && self.frontend.is_at_boundary() && self.backend.is_at_boundary()
    }

    /// Whether a transaction is open, be it one that has failed, and the client's next word is awaited.
    pub(crate) fn is_in_transaction(&self) -> bool {
        matches!(self.flow.transaction, b'T' | b'E')
            && !self.is_running()
            && self.flow.batch == 0
            && self.frontend.is_at_boundary()
            && self.backend.is_at_boundary()
    }

    /// Whether upstream works on something. Not so between the statements of a transaction, nor in a batch of
    /// which each message is answered, nor while half a message has come.
    pub(crate) fn is_running(&self) -> bool {
        self.flow.is_running()
    }

    /// Whether a message of our own to the client would begin where one may begin.
    pub(crate) fn is_backend_at_boundary(&self) -> bool {
        self.backend.is_at_boundary()
    }

    /// Whether a message of our own to upstream would begin where one may begin.
    pub(crate) fn is_frontend_at_boundary(&self) -> bool {
        self.frontend.is_at_boundary()
    }

    /// Whether the client has said Terminate.
    pub(crate) fn is_terminated(&self) -> bool {
        self.flow.terminated
    }

    /// Whether ErrorResponse is the last that upstream said, which makes it the reason where upstream then closes.
    pub(crate) fn ends_with_error(&self) -> bool {
        self.flow.last_backend == ERROR_RESPONSE
    }

    /// Whether the last that upstream said is that it ends the session. What follows is its end, and no message of
    /// ours.
    pub(crate) fn ends_by_upstream(&self) -> bool {
        self.ends_with_error() && self.code.is_some_and(SqlState::ends_session)
    }
}

/// The count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    /// How many ReadyForQuery are to come for certain.
    pending: u32,
    /// How many of the last of these answer a Sync: no Query or `FunctionCall` was sent behind those.
    trailing_syncs: u32,
    /// Extended messages since the last Sync, Query or `FunctionCall`.
    batch: u32,
    /// Messages of the kind that completes an extended message, since the last ReadyForQuery.
    completed: u32,
    /// The open batch has failed: upstream skips up to a Sync that has not been sent.
    skipping: bool,
    /// A Query or `FunctionCall` that was sent into an open batch.
    mixed: Option<Mixed>,
    copy: Option<CopyIn>,
    unknown_copy: UnknownCopy,
    /// Syncs of which nobody knows whether a ReadyForQuery is to come; they stand behind the first
    /// `pending_before_maybe` of the pending ones.
    maybe: u32,
    pending_before_maybe: u32,
    /// The bytes left two readings and never will leave one.
    unsure: bool,
    /// Of the last ReadyForQuery: `I`, `T` or `E`.
    transaction: u8,
    last_backend: u8,
    terminated: bool,
}

/// Where an error leaves open whether a Query was skipped: it was, unless the batch before it had completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mixed {
    /// ReadyForQuery to come before the batch is at the head.
    ahead: u32,
    /// Extended messages of the batch.
    batch: u32,
    /// Queries and `FunctionCall`s that would be skipped.
    queries: u32,
    /// No Sync has been sent since.
    open: bool,
}

/// What was sent of a COPY that is not known to have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnknownCopy {
    /// ReadyForQuery to come before the last message that may start one is at the head; `None` once that has
    /// been answered.
    start_ahead: Option<u32>,
    /// Syncs since that message.
    syncs: u32,
    /// Data has been sent since.
    has_data: bool,
    /// Something else than its end was sent behind such data: the COPY may have failed before that, or not.
    in_doubt: bool,
    end: Option<EarlyEnd>,
}

/// CopyDone and CopyFail of one Query or Execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EarlyEnd {
    /// ReadyForQuery to come before that Query or Execute is at the head.
    ahead: u32,
    ends: u32,
    /// Syncs between it and the first of these.
    syncs: u32,
}

impl UnknownCopy {
    const fn new() -> Self {
        Self { start_ahead: None, syncs: 0, has_data: false, in_doubt: false, end: None }
    }

    /// A message that may start a COPY goes out behind `pending` ReadyForQuery.
    fn start(&mut self, pending: u32) {
        self.start_ahead = Some(pending);
        self.syncs = 0;
        self.has_data = false;
    }

    /// Its end was sent. Returns whether that leaves one reading.
    fn end(&mut self) -> bool {
        self.has_data = false;
        // Without a message that may have started one, upstream drops it.
        let Some(ahead) = self.start_ahead else {
            return true;
        };
        let end = self.end.get_or_insert(EarlyEnd { ahead, ends: 0, syncs: self.syncs });
        end.ends = end.ends.saturating_add(1);
        end.ahead == ahead
    }

    /// A ReadyForQuery has come.
    fn advance(&mut self) {
        self.start_ahead = self.start_ahead.and_then(|ahead| ahead.checked_sub(1));
        self.end = self.end.and_then(|end| Some(EarlyEnd { ahead: end.ahead.checked_sub(1)?, ..end }));
        self.in_doubt &= self.start_ahead.is_some();
    }

    /// Takes the end of the COPY that has just begun, if it was sent.
    fn take_end(&mut self) -> Option<EarlyEnd> {
        let end = self.end.filter(|end| end.ahead == 0)?;
        let ends = end.ends.saturating_sub(1);
        self.end = (ends > 0).then_some(EarlyEnd { ends, syncs: 0, ..end });
        Some(end)
    }
}

/// A COPY whose `CopyInResponse` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CopyIn {
    /// Begun by a Query, and not by an Execute.
    by_query: bool,
    /// CopyDone or CopyFail has been sent.
    ended: bool,
    /// Syncs sent in it.
    syncs: u32,
}

impl Flow {
    const fn new() -> Self {
        Self {
            pending: 1,
            trailing_syncs: 0,
            batch: 0,
            completed: 0,
            skipping: false,
            mixed: None,
            copy: None,
            unknown_copy: UnknownCopy::new(),
            maybe: 0,
            pending_before_maybe: 0,
            unsure: false,
            transaction: 0,
            last_backend: 0,
            terminated: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.transaction == b'I' && self.batch == 0 && !self.is_running() && !self.terminated
    }

    fn is_running(&self) -> bool {
        let batch_is_running = self.batch > self.completed && !self.skipping;
        self.pending > 0 || self.maybe > 0 || self.copy.is_some() || batch_is_running || self.unsure
    }

    fn on_frontend(&mut self, tag: u8) {
        match tag {
            QUERY | FUNCTION_CALL => self.on_query(),
            SYNC => self.on_sync(),
            PARSE | BIND | DESCRIBE | CLOSE => self.on_extended(),
            EXECUTE => {
                self.on_extended();
                self.unknown_copy.start(self.pending);
            }
            COPY_DATA => {
                self.unknown_copy.has_data = self.copy.is_none() && self.unknown_copy.start_ahead.is_some();
            }
            COPY_DONE | COPY_FAIL => self.on_copy_end(),
            TERMINATE => self.terminated = true,
            _ => {}
        }
    }

    fn on_extended(&mut self) {
        self.doubt_copy();
        self.batch = self.batch.saturating_add(1);
    }

    /// Upstream survives a message of this kind only if the COPY before it has failed.
    fn doubt_copy(&mut self) {
        self.unknown_copy.in_doubt |= self.unknown_copy.has_data;
        self.unsure |= self.copy.is_some_and(|copy| !copy.ended);
    }

    fn on_query(&mut self) {
        self.doubt_copy();
        if self.skipping {
            return;
        }
        match &mut self.mixed {
            Some(mixed) if mixed.open && self.batch == 0 => mixed.queries = mixed.queries.saturating_add(1),
            Some(_) if self.batch > 0 => self.unsure = true,
            None if self.batch > 0 => {
                self.mixed = Some(Mixed { ahead: self.pending, batch: self.batch, queries: 1, open: true });
            }
            Some(_) | None => {}
        }
        self.unknown_copy.start(self.pending);
        self.pending = self.pending.saturating_add(1);
        self.trailing_syncs = 0;
        self.batch = 0;
    }

    fn on_sync(&mut self) {
        if let Some(copy) = self.copy.as_mut().filter(|copy| !copy.ended) {
            copy.syncs = copy.syncs.saturating_add(1);
            return;
        }
        if let Some(mixed) = &mut self.mixed {
            mixed.open = false;
        }
        self.unknown_copy.in_doubt |= self.unknown_copy.has_data;
        self.unknown_copy.syncs = self.unknown_copy.syncs.saturating_add(1);
        self.skipping = false;
        self.pending = self.pending.saturating_add(1);
        self.trailing_syncs = self.trailing_syncs.saturating_add(1);
        self.batch = 0;
    }

    fn on_copy_end(&mut self) {
        if let Some(copy) = self.copy.as_mut().filter(|copy| !copy.ended) {
            copy.ended = true;
            if !copy.by_query {
                self.require_sync();
            }
        } else {
            self.unsure |= !self.unknown_copy.end();
        }
    }

    fn on_backend(&mut self, tag: u8, first: Option<u8>) {
        self.last_backend = tag;
        match tag {
            READY_FOR_QUERY => return self.on_ready(first),
            // These come at any time.
            NOTIFICATION_RESPONSE | NOTICE_RESPONSE | PARAMETER_STATUS => return,
            _ => {}
        }
        // Anything else answers a message that was sent behind those Syncs: they have had what they get.
        self.maybe = 0;
        match tag {
            COPY_IN_RESPONSE => self.on_copy_in(),
            ERROR_RESPONSE => self.on_error(),
            COMMAND_COMPLETE => {
                self.copy = None;
                self.completed = self.completed.saturating_add(1);
            }
            PARSE_COMPLETE | BIND_COMPLETE | CLOSE_COMPLETE | ROW_DESCRIPTION | NO_DATA
            | EMPTY_QUERY_RESPONSE | PORTAL_SUSPENDED => self.completed = self.completed.saturating_add(1),
            _ => {}
        }
    }

    fn on_ready(&mut self, transaction: Option<u8>) {
        if self.maybe > 0 && self.pending_before_maybe == 0 {
            self.maybe -= 1;
        } else {
            self.advance();
        }
        self.completed = 0;
        self.skipping = false;
        self.copy = None;
        self.transaction = transaction.unwrap_or_default();
    }

    /// One of the pending ReadyForQuery has come.
    fn advance(&mut self) {
        self.pending = self.pending.saturating_sub(1);
        self.pending_before_maybe = self.pending_before_maybe.saturating_sub(1);
        self.trailing_syncs = self.trailing_syncs.min(self.pending);
        self.unknown_copy.advance();
        self.mixed = self.mixed.and_then(|mixed| Some(Mixed { ahead: mixed.ahead.checked_sub(1)?, ..mixed }));
    }

    fn on_copy_in(&mut self) {
        self.unsure |= self.mixed.is_some() || self.unknown_copy.in_doubt;
        let by_query = self.pending > self.trailing_syncs;
        let end = self.unknown_copy.take_end();
        // Upstream reads the Syncs between the start of the COPY and its end as part of it.
        self.forget(end.map_or(self.trailing_syncs, |end| end.syncs));
        if end.is_some() && !by_query && self.pending == 0 {
            self.require_sync();
        }
        self.copy = Some(CopyIn { by_query, ended: end.is_some(), syncs: 0 });
    }

    /// So many messages behind the one at the head will not be answered.
    fn forget(&mut self, unanswered: u32) {
        self.pending = self.pending.saturating_sub(unanswered);
        self.trailing_syncs = self.trailing_syncs.min(self.pending);
        let start_ahead = &mut self.unknown_copy.start_ahead;
        *start_ahead = start_ahead.map(|ahead| ahead.saturating_sub(unanswered));
    }

    fn on_error(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.maybe = copy.syncs;
            self.pending_before_maybe = u32::from(copy.by_query);
            if !copy.by_query && self.pending == 0 {
                self.require_sync();
                self.skipping = copy.syncs == 0;
            }
            return;
        }
        match self.mixed {
            Some(mixed) if mixed.ahead == 0 && self.completed < mixed.batch => {
                self.forget(mixed.queries);
                self.unsure |= self.unknown_copy.end.is_some();
                self.mixed = None;
                self.skipping = mixed.open;
                if mixed.open {
                    self.require_sync();
                }
            }
            _ => self.skipping = self.pending == 0 && self.batch > 0,
        }
    }

    /// Only a Sync ends what goes on.
    fn require_sync(&mut self) {
        self.batch = self.batch.max(1);
    }
}

#[cfg(test)]
pub(crate) mod bug;

#[cfg(test)]
mod tests;
