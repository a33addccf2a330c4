use tokio::time;

use super::*;

fn credential(generation: u64) -> Credential {
    Credential {
        user: format!("v-{generation}"),
        password: SecretString::from("secret"),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(generation),
        keys: DerivedKeys::default(),
        granted: Granted::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn session_waits_for_the_first_credential_and_frees_its_place() {
    let (publisher, source) = channel();
    let waiting = publisher.waiting();

    let (hold, ()) = tokio::join!(source.hold(), async {
        tokio::task::yield_now().await;
        assert_eq!(*waiting.borrow(), 1);
        publisher.promote(credential(1));
    });

    assert_eq!(hold.unwrap().credential().user, "v-1");
    assert_eq!(*waiting.borrow(), 0);
}

#[tokio::test(start_paused = true)]
async fn rejected_credential_is_reported_once_and_replaced_by_a_newer_one() {
    let (mut publisher, source) = channel();
    publisher.promote(credential(1));
    let rejected = source.hold().await.unwrap();

    let (hold, ()) = tokio::join!(source.replace(rejected), async {
        assert_eq!(publisher.suspicion().await, Some(Suspicion::Rejected(GenerationId(1))));
        publisher.promote(credential(2));
    });

    assert_eq!(hold.unwrap().credential().generation, GenerationId(2));
}

#[tokio::test(start_paused = true)]
async fn hold_is_given_back_on_drop_and_stays_with_its_own_generation() {
    let (publisher, source) = channel();
    let first = publisher.promote(credential(1));
    let hold = source.hold().await.unwrap();
    let second = publisher.promote(credential(2));

    assert_eq!((*first.holds().borrow(), *second.holds().borrow()), (1, 0));
    drop(hold);
    assert_eq!(*first.holds().borrow(), 0);
    assert_eq!(source.hold().await.unwrap().credential().user, "v-2");
}

#[tokio::test(start_paused = true)]
async fn session_is_turned_away_when_nobody_publishes_any_more() {
    let (publisher, source) = channel();
    drop(publisher);

    assert_eq!(source.hold().await.unwrap_err(), SourceClosed);
}

#[tokio::test(start_paused = true)]
async fn source_is_unused_when_nobody_holds_or_waits() {
    let (publisher, source) = channel();
    source.unused().await;
    let is_used = async || time::timeout(Duration::from_secs(9), source.unused()).await.is_err();
    let (hold, ()) = tokio::join!(source.hold(), async {
        assert!(is_used().await);
        publisher.promote(credential(1));
    });
    publisher.promote(credential(2));
    assert!(is_used().await);
    drop(hold);
    source.unused().await;
    drop(publisher);
    source.ended().await;
}

#[tokio::test(start_paused = true)]
async fn file_holds_each_credential_and_waits_only_where_there_is_none() {
    let (publisher, source) = channel();
    let waiting = |wanted| {
        let mut waiting = publisher.waiting();
        async move { assert_eq!(*waiting.wait_for(|waiting| *waiting == wanted).await.unwrap(), wanted) }
    };
    let (hold, first) = tokio::join!(source.next(None), async {
        waiting(1).await;
        publisher.promote(credential(1))
    });
    let hold = hold.unwrap();
    waiting(0).await;
    assert_eq!((first.sessions(), first.files()), (0, 1));
    let before = Some(hold.credential().generation);
    let second = async {
        // It has looked once: what is offered is what the file has.
        assert!(time::timeout(Duration::from_secs(9), waiting(1)).await.is_err());
        publisher.withdraw();
        waiting(1).await;
        publisher.promote(credential(2))
    };
    let (next, second) = tokio::join!(source.next(before), second);
    assert_eq!(next.unwrap().credential().user, "v-2");
    drop(hold);
    assert_eq!((first.files(), *first.holds().borrow(), *second.holds().borrow()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn proof_is_remembered_when_the_credential_is_withdrawn() {
    let (publisher, source) = channel();
    publisher.promote(credential(1));
    assert!(source.is_ready() && !source.was_proven());
    publisher.note_proof();
    publisher.withdraw();

    assert!(!source.is_ready() && source.was_proven());
}
