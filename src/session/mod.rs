//! One session from accept to close, in the order in which it happens.
//!
//! [`run`] is the task of one connection: the listener spawns it, and it ends with the connection. It comes to a
//! session ([`Opened`]), or refuses with words of PostgreSQL, or delivers a cancel; a session then relays until it
//! ends and is closed on both sides. It runs no other task.

pub(crate) mod admission;
pub(crate) mod startup;
pub(crate) mod encryption;
pub(crate) mod auth;
pub(crate) mod route;
pub(crate) mod login;
pub(crate) mod warm;
mod opened;
pub(crate) mod relay;
mod bell;
pub(crate) mod turn;
mod watch;
mod doubt;
mod ending;
mod close;
pub(crate) mod cancel;
mod error;
mod fault;
mod record;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch as channel};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::drain::Phase;
use crate::ids::SessionId;
use crate::net::{ClientStream, Direct, Peer};
use crate::roster::{Newcomer, Roster};
use crate::telemetry::Metrics;
use crate::upstream::Ahead;
use crate::wire::message::TERMINATE;

use admission::{Admission, Place, Places, Seat, Seats};
use auth::{Auth, Client};
use cancel::{CancelRegistry, Registration};
use encryption::{ClientTls, Transport};
use error::SessionError;
use fault::{caught, tried};
use login::{Attempt, Login};
use opened::Opened;
use record::{Name, Record};
use relay::outbox;
use route::{Outbound, Route};
use startup::{Startup, StartupError};
use warm::Keeping;

/// What all sessions of a process have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    rules: RwLock<Arc<Rules>>,
    cancels: Arc<CancelRegistry>,
    metrics: Arc<Metrics>,
    phase: channel::Receiver<Phase>,
    seats: Seats,
    places: Arc<Places>,
    /// For connections to upstreams on which there may be no login.
    ahead: Arc<Semaphore>,
    /// Of what is done beside the connections: sessions that are made ready.
    tasks: TaskTracker,
    roster: Arc<Roster>,
    last_id: AtomicU64,
    cut: AtomicU64,
}

/// What a session goes by that begins now. Those that have begun stay with what they began by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// In the order in which they are tried.
    pub(crate) routes: Vec<Route>,
    pub(crate) auth: Arc<Auth>,
    /// For clients that ask for it.
    pub(crate) tls: Option<Arc<ClientTls>>,
    pub(crate) connect_wait: Duration,
}

impl Shared {
    /// `routes` in the order in which they are tried.
    pub(crate) fn new(
        routes: Vec<Route>,
        auth: Auth,
        metrics: Arc<Metrics>,
        phase: channel::Receiver<Phase>,
        connect_wait: Duration,
        max_sessions: usize,
    ) -> Self {
        let rules = Rules { routes, auth: Arc::new(auth), tls: None, connect_wait };
        let seats = Seats::new(max_sessions);
        let places = Arc::new(Places::new(SPARE_PLACES, &seats));
        Self {
            rules: RwLock::new(Arc::new(rules)),
            cancels: Arc::default(),
            metrics,
            phase,
            seats,
            places,
            ahead: Arc::new(Semaphore::new(MAX_AHEAD)),
            tasks: TaskTracker::new(),
            roster: Arc::default(),
            last_id: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    /// With TLS for clients that ask for it.
    pub(crate) fn with_tls(self, tls: Option<ClientTls>) -> Self {
        self.change(|rules| rules.tls = tls.map(Arc::new));
        self
    }

    /// What a session goes by that begins now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has sessions that begin from now on go by other rules.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut rules));
    }

    /// Has so many sessions at a time. Those that are open go on.
    pub(crate) fn set_max_sessions(&self, max: usize) {
        self.seats.set_max(max);
    }

    pub(crate) fn phase(&self) -> channel::Receiver<Phase> {
        self.phase.clone()
    }

    /// Returns when no new session may begin any more. Cancel safe.
    pub(crate) async fn refuses(&self) {
        watch::refused(self.phase()).await;
    }

    /// The sessions that are open.
    pub(crate) fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.places
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Returns when nothing is left of what sessions were made ready ahead; nobody asks for one any more.
    pub(crate) async fn none_ready(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What changes whenever a connection comes or ends.
    pub(crate) fn traffic(&self) -> impl PartialEq + use<> {
        (self.last_id.load(Ordering::Relaxed), self.places.len(), self.roster.len())
    }

    /// How many sessions the end of the process has cut.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether there would be a seat now. Nobody need prove anything to hear that there is none.
    fn check_seats(&self) -> Result<(), SessionError> {
        self.check_phase()?;
        self.seats.is_free().then_some(()).ok_or_else(|| self.no_seat())
    }

    /// Begins the way to where `asking` will want to go, if it is asked for a proof until then: without a credential
    /// there is no hurry.
    fn ahead(&self, rules: &Rules, asking: &Client) -> Option<Ahead> {
        let route = rules.auth.asks().then(|| route::find(&rules.routes, asking).ok()).flatten()?;
        if route.warm.as_ref().is_some_and(|warm| !warm.is_empty()) {
            return None;
        }
        let place = Arc::clone(&self.ahead).try_acquire_owned().ok()?;
        route.source.is_ready().then(|| route.upstream.connect_ahead(place)).flatten()
    }

    /// A seat for a session that asks now.
    fn admit(&self) -> Result<Seat, SessionError> {
        self.check_phase()?;
        self.seats.take().ok_or_else(|| self.no_seat())
    }

    fn check_phase(&self) -> Result<(), SessionError> {
        match *self.phase.borrow() {
            Phase::Serving => Ok(()),
            Phase::Draining { accept_until, .. } if Instant::now() < accept_until => Ok(()),
            Phase::Draining { .. } | Phase::Cut => Err(SessionError::Draining),
        }
    }

    fn no_seat(&self) -> SessionError {
        SessionError::NoSeat { max: self.seats.max() }
    }
}

/// Serves one connection to its end.
pub(crate) fn run<T>(
    client: ClientStream<T>,
    peer: Peer,
    place: Place,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> + Send
where
    T: AsyncRead + AsyncWrite + Direct + Unpin + Send,
{
    let id = SessionId(shared.last_id.fetch_add(1, Ordering::Relaxed) + 1);
    let record = Record::new(id, Arc::clone(&shared.metrics));
    let mut walk = Walk::Begins(Box::pin(begin(client, peer, place, shared, record)));
    poll_fn(move |cx| {
        // Where the client can be told of a panic, it has been caught already.
        tried(|| walk.poll(cx)).unwrap_or_else(|_| {
            record::panicked(id);
            Poll::Ready(())
        })
    })
}

/// Where a connection's task is. Each part is in a box of its own: a task keeps the room of its largest one to the end, and
/// all but the relay is short.
enum Walk<B, R> {
    Begins(Pin<Box<B>>),
    Relays(Pin<Box<R>>),
}

impl<B, R> Walk<B, R>
where
    B: Future<Output = Option<Pin<Box<R>>>>,
    R: Future<Output = ()>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::Begins(begins) => {
                    // Which may take long, as key agreement does.
                    outbox::send();
                    match ready!(begins.as_mut().poll(cx)) {
                        Some(relays) => *self = Self::Relays(relays),
                        None => return Poll::Ready(()),
                    }
                }
                Self::Relays(relays) => return relays.as_mut().poll(cx),
            }
        }
    }
}

/// Comes to a session, whose relay is to run then, or to the end of the connection.
async fn begin<T>(
    mut client: ClientStream<T>,
    peer: Peer,
    place: Place,
    shared: Arc<Shared>,
    mut record: Record,
) -> Option<Pin<Box<impl Future<Output = ()> + Send>>>
where
    T: AsyncRead + AsyncWrite + Direct + Unpin + Send,
{
    let id = record.id();
    let evicted = place.evicted();
    let mut admission = Admission::Place(place);
    let mut owed = BytesMut::new();

    let mut opening = Box::pin(async {
        tokio::select! {
            biased;
            () = evicted.cancelled() => Err(StartupError::Evicted.into()),
            opened = open(&mut client, peer, &mut admission, &mut owed, &shared, &mut record) => opened,
        }
    });
    let opened = caught(opening.as_mut()).await;
    drop(opening);
    match opened.unwrap_or_else(|panicked| Err(panicked.into())) {
        Ok(Some(opened)) => return Some(Box::pin(opened.serve(client, admission, shared, record))),
        Ok(None) => {
            record.cancelled();
            turn_away(&mut client, &[], &evicted).await;
        }
        Err(error) => {
            let mut last_words = BytesMut::new();
            error.encode(id, &mut last_words);
            if !last_words.is_empty() {
                owed.unsplit(last_words);
                last_words = owed;
            }
            record.refused(&error);
            drop(error);
            turn_away(&mut client, &last_words, &evicted).await;
        }
    }
    None
}

/// Tells a client why it gets no session, unless newer connections need its place.
async fn turn_away<T>(client: &mut ClientStream<T>, last_words: &[u8], evicted: &CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // Silence has no last words that a reset could take away.
    if last_words.is_empty() && !client.has_goodbye() {
        return;
    }
    tokio::select! {
        biased;
        () = close::close_client(client, last_words) => {}
        () = evicted.cancelled() => {}
    }
}

/// From the first byte to ReadyForQuery; `None` for a connection that only brought a cancel. While something stands in
/// `owed` the client must be told that before anything else.
async fn open<T>(
    client: &mut ClientStream<T>,
    peer: Peer,
    admission: &mut Admission,
    owed: &mut BytesMut,
    shared: &Shared,
    record: &mut Record,
) -> Result<Option<Box<Opened>>, SessionError>
where
    T: AsyncRead + AsyncWrite + Direct + Unpin + Send,
{
    let mut early = BytesMut::new();
    let rules = shared.rules();
    // As in PostgreSQL there is no TLS over a Unix socket.
    let tls = rules.tls.as_deref().filter(|_| matches!(peer, Peer::Tcp(_)));
    let (message, encryption) = match startup::read(client, &mut early, tls).await? {
        Startup::Session(message, encryption) => (message, encryption),
        Startup::Cancel(key) => {
            shared.cancels.deliver(&key, &shared.metrics, || admission.keep()).await?;
            return Ok(None);
        }
    };
    let transport = Transport { peer, encryption };
    if rules.tls.is_some() && transport.is_exposed() {
        return Err(SessionError::NotEncrypted);
    }
    let asking = auth::identify(message, transport)?;
    shared.check_seats()?;
    // While it proves who it is, the way to its upstream is made.
    let mut ahead = shared.ahead(&rules, &asking);
    *owed = tokio::select! {
        biased;
        proven = rules.auth.prove(client, &mut early, &asking) => proven?,
        () = shared.refuses() => return Err(SessionError::Draining),
        never = login::go_on(&mut ahead) => match never {},
    };
    // They may have changed while it proved who it is.
    let rules = shared.rules();
    let deadline = Instant::now() + rules.connect_wait;
    admission.sit(|| shared.admit())?;

    let route = route::find(&rules.routes, &asking)?;
    let application_name = asking.message.parameters.get("application_name").unwrap_or_default();
    let listed = shared.roster.enter(Newcomer {
        session: record.id(),
        began: record.began(),
        peer,
        database: &Name(&asking.database).to_string(),
        application_name: &Name(application_name).to_string(),
        vault_path: &route.config.vault_path,
    });
    let Outbound { parameters, at_lease_end } = route::outbound(&asking, &route.config);
    let mut attempt = Attempt {
        route,
        ahead,
        parameters: &parameters,
        secret_len: asking.message.version.cancel_secret_len(),
        metrics: &shared.metrics,
        line: listed.line(),
        connect_wait: rules.connect_wait,
        deadline,
    };
    let login = tokio::select! {
        biased;
        login = attempt.run(client, &mut early) => login?,
        () = watch::too_late(shared.phase()) => return Err(SessionError::Draining),
    };
    if let Some(warm) = &route.warm {
        let Route { upstream, source, .. } = route;
        warm.note(&parameters, &Keeping { upstream, source, phase: shared.phase(), tasks: &shared.tasks });
    }
    let Login { mut logged_in, hold } = login;

    let target = logged_in.cancel.take();
    let registration = target
        .map(|target| shared.cancels.register(Arc::clone(&route.upstream), target, attempt.secret_len))
        .transpose()?;
    let key = registration.as_ref().map(Registration::key);
    let greeting = login::greeting(&logged_in, key);
    listed.line().logged_in(hold.credential().generation, key.map_or(0, |key| key.pid));
    let mut opened = Box::new(Opened {
        upstream: logged_in.stream,
        after_key: logged_in.after_key,
        early,
        hold,
        registration,
        at_lease_end,
        removed: Arc::clone(&route.removed),
        max_age: route.config.max_session_age.map(|max_age| (max_age, route.source.clone())),
        listed,
    });
    record.opened(&asking, &logged_in.address, opened.hold.credential(), opened.registration.as_ref());
    owed.unsplit(greeting);
    if let Err(error) = greet(client, &std::mem::take(owed)).await {
        Box::pin(close::close_upstream(&mut opened.upstream, TERMINATE)).await;
        return Err(error);
    }
    Ok(Some(opened))
}

async fn greet<C: AsyncWrite + Unpin>(client: &mut C, greeting: &[u8]) -> Result<(), SessionError> {
    let written = async {
        client.write_all(greeting).await?;
        client.flush().await
    };
    match time::timeout(GREETING_TIMEOUT, written).await {
        Ok(written) => written.map_err(SessionError::ClientLost),
        Err(_) => Err(SessionError::ClientStalled),
    }
}

/// For the client to take its greeting, which fits into a socket's buffer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to upstreams that are begun for clients who have proven nothing yet. In a burst of more of them the
/// others connect behind their proof.
const MAX_AHEAD: usize = 16;
/// Places beyond one for each seat that is free.
pub(crate) const SPARE_PLACES: usize = 64;

#[cfg(test)]
mod tests;
