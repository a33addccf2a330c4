//! Many messages at once, few at once, and answers that nobody asked for in between.

use super::{FLUSH, Pair, SYNC, TERMINATE, pid, statement, tags};
use crate::pglease_for;
use crate::raw::Raw;
use crate::support::pglease::Pglease;
use crate::support::world::{World, WorldOptions};

#[tokio::test]
async fn pipelines_flushes_functions_and_notices_come_as_they_do_directly() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let leased = world.lease("db-app").await;
    let pair = async || Pair::open(&world, &pglease, &leased).await;

    pipelines_of_thousands(pair().await, pair().await).await;
    let mut pair = pair().await;
    flushes(&mut pair).await;
    copies(&mut pair).await;
    large_objects(&mut pair).await;
    notices(&world, &mut pair).await;
    pair.send(TERMINATE).await;
    assert_eq!(pair.rest().await, []);
    notifications(&pglease).await;
}

/// Of a client that reads nothing before it has written everything. One statement in the middle fails: what is behind
/// it is answered, or skipped up to the Sync.
async fn pipelines_of_thousands(mut synced: Pair, mut unsynced: Pair) {
    let statements = (0..5000).map(|n| statement(&format!("SELECT 1000000 / ({n} - 2500)"), 0));
    let statements: Vec<_> = statements.collect();
    synced.send(&[statements.join(SYNC), SYNC.to_vec(), TERMINATE.to_vec()].concat()).await;
    let answers = synced.rest().await;
    let count = |tag| answers.iter().filter(|message| message.tag == tag).count();
    assert_eq!((count(b'C'), count(b'E'), count(b'Z')), (4999, 1, 5000));

    unsynced.send(&[statements.concat(), SYNC.to_vec(), TERMINATE.to_vec()].concat()).await;
    let answers = unsynced.rest().await;
    let count = |tag| answers.iter().filter(|message| message.tag == tag).count();
    assert_eq!((count(b'C'), count(b'E'), count(b'Z')), (2500, 1, 1));
}

/// Each is answered without a Sync, rows by portions too.
async fn flushes(pair: &mut Pair) {
    for n in 0..20 {
        pair.send(&[statement(&format!("SELECT {n}"), 0), FLUSH.to_vec()].concat()).await;
        assert_eq!(tags(&pair.up_to(b'C').await), "12DC");
    }
    pair.send(&[statement("SELECT generate_series(1, 5)", 2), FLUSH.to_vec()].concat()).await;
    assert_eq!(tags(&pair.up_to(b's').await), "12DDs");
    let execute = b"E\0\0\0\x09\0\0\0\0\x02";
    pair.send(&[execute, FLUSH].concat()).await;
    assert_eq!(tags(&pair.up_to(b's').await), "DDs");
    pair.send(&[execute, FLUSH].concat()).await;
    assert_eq!(tags(&pair.up_to(b'C').await), "DC");
    pair.send(&[statement("SELECT 1 / 0", 0), FLUSH.to_vec()].concat()).await;
    pair.up_to(b'E').await;
    pair.send(&[&statement("SELECT 1", 0), FLUSH, SYNC].concat()).await;
    assert_eq!(tags(&pair.up_to(b'Z').await), "Z");
}

/// Which end well and badly, by Query and by Execute, with a Sync within.
async fn copies(pair: &mut Pair) {
    pair.query("CREATE TEMP TABLE copied (id int)").await;
    pair.up_to(b'Z').await;
    let (data, done, fail) = (b"d\0\0\0\x061\n", b"c\0\0\0\x04", b"f\0\0\0\x07no\0");
    for end in [&[&data[..], &data[..], done].concat(), &[&data[..], fail].concat(), &b"d\0\0\0\x06x\n"[..]] {
        pair.query("COPY copied FROM STDIN").await;
        pair.up_to(b'G').await;
        pair.send(end).await;
        pair.up_to(b'Z').await;
        let copy = statement("COPY copied FROM STDIN", 0);
        pair.send(&[&copy, SYNC, end, SYNC].concat()).await;
        pair.up_to(b'Z').await;
    }
    pair.query("COPY copied TO STDOUT; COPY copied TO STDOUT (FORMAT binary); COPY (SELECT 1 / 0) TO STDOUT")
        .await;
    assert_eq!(tags(&pair.up_to(b'Z').await), "HddddcCHdddddcCEZ");
}

/// By `FunctionCall`, as libpq has it: made, written, read and removed in a transaction.
async fn large_objects(pair: &mut Pair) {
    let object = 424_242_u32;
    for user in [&mut pair.direct, &mut pair.through] {
        user.query("BEGIN").await;
        user.up_to(b'Z').await;
        assert_eq!(call(user, LO_CREATE, &[&object.to_be_bytes()]).await, object.to_be_bytes());
        let read_write = 0x0006_0000_u32;
        let file = call(user, LO_OPEN, &[&object.to_be_bytes(), &read_write.to_be_bytes()]).await;
        let content: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
        let written = call(user, LO_WRITE, &[&file, &content]).await;
        assert_eq!(written, 1_000_000_u32.to_be_bytes());
        call(user, LO_LSEEK, &[&file, &[0; 4], &[0; 4]]).await;
        let read = call(user, LO_READ, &[&file, &1_000_000_u32.to_be_bytes()]).await;
        assert!(read == content);
        call(user, LO_UNLINK, &[&object.to_be_bytes()]).await;
        user.query("COMMIT").await;
        user.up_to(b'Z').await;
    }
}

/// The binary result of a function with binary arguments.
async fn call(user: &mut Raw, function: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
    let count = u16::try_from(arguments.len()).unwrap().to_be_bytes();
    let mut body = [&function.to_be_bytes()[..], &[0, 1, 0, 1], &count].concat();
    for argument in arguments {
        body.extend(len(argument));
        body.extend(*argument);
    }
    body.extend([0, 1]);
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    user.send(&[b"F", &length[..], &body].concat()).await;
    let answer = user.up_to(b'Z').await;
    assert_eq!(tags(&answer), "VZ", "{answer:?}");
    answer[0].body[4..].to_vec()
}

/// Between rows, in an open batch, and of any size.
async fn notices(world: &World<'_>, pair: &mut Pair) {
    let function = "CREATE FUNCTION noisy(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
         IF n % 3 = 0 THEN RAISE NOTICE 'at %', n; END IF;
         IF n % 50 = 0 THEN RAISE WARNING '%', repeat('w', n * 1000); END IF;
         RETURN n; END $$";
    world.superuser.batch_execute(function).await.unwrap();
    let noisy = "SELECT noisy(n) FROM generate_series(1, 200) n";
    pair.query(noisy).await;
    let answer = pair.up_to(b'Z').await;
    assert_eq!(answer.iter().filter(|message| message.tag == b'N').count(), 66 + 4);
    pair.send(&[&statement(noisy, 20), FLUSH].concat()).await;
    pair.up_to(b's').await;
    pair.send(SYNC).await;
    pair.up_to(b'Z').await;
    // What a setting that changes brings is told when it does.
    for sql in ["SET datestyle = 'German'; SELECT 1", "RESET datestyle"] {
        pair.query(sql).await;
        let answer = tags(&pair.up_to(b'Z').await);
        assert!(answer.ends_with("SZ"), "{answer}");
    }
}

/// By the pid that the sender was greeted with, and to the sender itself too.
async fn notifications(pglease: &Pglease) {
    let parameters = [("user", "app"), ("database", "app")];
    let (mut listener, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    let (mut sender, greeting) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    listener.query("LISTEN told").await;
    listener.up_to(b'Z').await;
    sender.query("LISTEN told").await;
    sender.up_to(b'Z').await;
    for n in 0..3 {
        sender.query(&format!("NOTIFY told, '{n}'")).await;
        let own = sender.up_to(b'Z').await;
        assert_eq!(tags(&own), "CAZ");
        let told = listener.up_to(b'A').await;
        let expected =
            [&pid(&greeting).to_be_bytes()[..], b"told\0", n.to_string().as_bytes(), b"\0"].concat();
        assert_eq!(told[0].body, expected);
        assert_eq!(own[1].body, expected);
    }
}

// Of pg_proc, the same in every PostgreSQL.
const LO_OPEN: u32 = 952;
const LO_READ: u32 = 954;
const LO_WRITE: u32 = 955;
const LO_LSEEK: u32 = 956;
const LO_UNLINK: u32 = 964;
const LO_CREATE: u32 = 715;
