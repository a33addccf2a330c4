use std::future::poll_fn;
use std::num::ParseIntError;
use std::os::unix::fs::symlink;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::Poll;

use tempfile::TempDir;

use super::*;

/// What went wrong with a [`Number`].
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the pair is one of two")]
    Pair,
    #[error("no number")]
    Number(#[from] ParseIntError),
    #[error("the disk")]
    Disk,
}

/// Numbers of two files that must be the same, and what was said of them.
struct Pair {
    dir: TempDir,
    number: Reread<u32, Fault>,
    said: Arc<Mutex<Vec<String>>>,
    made: Arc<AtomicUsize>,
}

impl Pair {
    /// In `dir`, where `one` and `two` are. `during` is done between reading the two.
    fn with(dir: TempDir, during: impl Fn(&Path) -> Result<(), Fault> + Send + Sync + 'static) -> Self {
        let root = dir.path().to_owned();
        let (said, made) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let (says, makes) = (Arc::clone(&said), Arc::clone(&made));
        let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().parse::<u32>();
        let paths = ["one", "two"].map(|name| root.join(name)).to_vec();
        let make = move || {
            let begun = makes.fetch_add(1, Ordering::Relaxed) + 1;
            let one = read(root.join("one"))?;
            if begun > 1 {
                during(&root)?;
            }
            if one == read(root.join("two"))? { Ok(one) } else { Err(Fault::Pair) }
        };
        let tell = move |made: Result<&u32, &Fault>| {
            says.lock().unwrap().push(match made {
                Ok(number) => number.to_string(),
                Err(error) => error.to_string(),
            });
        };
        let number = Reread::new(paths, make, tell).unwrap();
        Self { dir, number, said, made }
    }

    fn of_files() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "one", "1");
        write(dir.path(), "two", "1");
        Self::with(dir, |_| Ok(()))
    }

    fn write(&self, name: &str, text: &str) {
        write(self.dir.path(), name, text);
    }

    /// Once the next look is due.
    async fn later(&self) -> u32 {
        time::advance(INTERVAL).await;
        self.number.get().await
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap())
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

/// A new file in the place of an old one.
fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join("next"), text).unwrap();
    fs::rename(dir.join("next"), dir.join(name)).unwrap();
}

#[test]
fn change_of_any_file_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("ca")).unwrap();
    let paths = [path("ca"), path("cert"), path("key")];
    let mut seen = stamps(&paths);
    let mut is_new = || {
        let now = stamps(&paths);
        std::mem::replace(&mut seen, now.clone()) != now
    };
    assert!(!is_new());
    for name in ["cert", "key", "ca/one.pem"] {
        fs::write(path(name), "a").unwrap();
        assert!(is_new(), "{name} is there");
        write(dir.path(), name, "b");
        assert!(is_new(), "{name} is replaced");
        fs::write(path(name), "longer").unwrap();
        assert!(is_new(), "{name} is rewritten");
    }
    fs::remove_file(path("ca/one.pem")).unwrap();
    assert!(is_new());
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_once_a_second_however_many_ask() {
    let pair = Pair::of_files();
    pair.write("one", "2");
    pair.write("two", "2");
    assert_eq!(pair.number.get().await, 1, "they were looked at when the first value was made");
    time::advance(INTERVAL).await;
    let all = iter::repeat_with(|| pair.number.get()).take(100);
    for number in futures_together(all).await {
        assert_eq!(number, 2);
    }
    assert_eq!((pair.said(), pair.made()), (vec!["2".to_owned()], 2));
    // Nothing has changed, and nothing is read.
    assert_eq!(pair.later().await, 2);
    assert_eq!((pair.said(), pair.made()), (vec![], 2));
}

/// What each of them gives, all being polled together.
async fn futures_together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    let mut ready = Vec::new();
    poll_fn(|cx| {
        pending.retain_mut(|future| match future.as_mut().poll(cx) {
            Poll::Ready(output) => {
                ready.push(output);
                false
            }
            Poll::Pending => true,
        });
        if pending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    ready
}

#[tokio::test(start_paused = true)]
async fn half_of_a_pair_is_said_once_and_leaves_the_value_before_it() {
    let pair = Pair::of_files();
    pair.write("one", "2");
    for _ in 0..100 {
        assert_eq!(pair.later().await, 1);
    }
    assert_eq!(pair.said(), ["the pair is one of two"]);
    // Files that do not change are read again, and ever more rarely: after 1, 2, 4, 8, 16, 30 and 30 seconds.
    assert_eq!(pair.made(), 9);
    pair.write("two", "none");
    assert_eq!(pair.later().await, 1);
    assert_eq!(pair.said(), ["no number"], "another cause");
    pair.write("two", "nil");
    assert_eq!(pair.later().await, 1);
    assert_eq!(pair.said(), ["no number"], "another file");
    pair.write("two", "2");
    assert_eq!(pair.later().await, 2);
    assert_eq!(pair.said(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn what_failed_for_a_while_is_made_without_another_change_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "one", "1");
    write(dir.path(), "two", "1");
    let fails = Arc::new(AtomicUsize::new(2));
    let failing = Arc::clone(&fails);
    let pair = Pair::with(dir, move |_| match failing.load(Ordering::Relaxed) {
        0 => Ok(()),
        left => {
            failing.store(left - 1, Ordering::Relaxed);
            Err(Fault::Disk)
        }
    });
    pair.write("two", "2");
    pair.write("one", "2");
    let mut numbers = Vec::new();
    for _ in 0..5 {
        numbers.push(pair.later().await);
    }
    assert_eq!((numbers, pair.said()), (vec![1, 1, 1, 2, 2], vec!["the disk".to_owned(), "2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn link_that_is_swapped_between_two_files_gives_a_whole_pair_and_no_alarm() {
    let dir = tempfile::tempdir().unwrap();
    for number in ["1", "2", "3"] {
        fs::create_dir(dir.path().join(number)).unwrap();
        write(&dir.path().join(number), "one", number);
        write(&dir.path().join(number), "two", number);
    }
    // As the kubelet has it: files by way of `..data`, which is replaced.
    let swap = |root: &Path, number: &str| {
        symlink(number, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    swap(dir.path(), "1");
    symlink("..data/one", dir.path().join("one")).unwrap();
    symlink("..data/two", dir.path().join("two")).unwrap();
    let swaps = AtomicUsize::new(0);
    let pair = Pair::with(dir, move |root| {
        if swaps.fetch_add(1, Ordering::Relaxed) == 0 {
            swap(root, "3");
        }
        Ok(())
    });
    assert_eq!(pair.later().await, 1);
    swap(pair.dir.path(), "2");
    assert_eq!(pair.later().await, 3, "the pair of after the swap");
    assert_eq!(pair.said(), ["3"]);
    assert_eq!((pair.later().await, pair.said()), (3, vec![]));
}

#[tokio::test(start_paused = true)]
async fn disk_that_does_not_answer_is_waited_for_once_and_not_for_long() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "one", "1");
    write(dir.path(), "two", "1");
    let (answer, answers) = mpsc::channel::<()>();
    let answers = Mutex::new(answers);
    let pair = Pair::with(dir, move |_| answers.lock().unwrap().recv().map_err(|_| Fault::Disk));
    pair.write("one", "2");
    pair.write("two", "2");
    time::advance(INTERVAL).await;

    let mut first = pin!(pair.number.get());
    assert!(is_pending(first.as_mut()).await);
    time::advance(PATIENCE).await;
    assert_eq!(first.await, 1);
    for _ in 0..3 {
        time::advance(INTERVAL).await;
        let mut later = pin!(pair.number.get());
        assert!(!is_pending(later.as_mut()).await, "nobody waits for it any more");
    }
    answer.send(()).unwrap();
    let mut looks = pair.number.0.last_look.subscribe();
    looks.wait_for(|look| look.is_over).await.unwrap();
    assert_eq!((pair.number.value(), pair.made()), (2, 2));
}

/// After one poll, which may have been the last.
async fn is_pending(mut future: std::pin::Pin<&mut impl Future>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

#[tokio::test(start_paused = true)]
async fn look_that_panics_is_over_and_the_next_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "one", "1");
    write(dir.path(), "two", "1");
    let panics = AtomicUsize::new(0);
    let pair = Pair::with(dir, move |_| {
        assert!(panics.fetch_add(1, Ordering::Relaxed) > 0, "as the test wants it");
        Ok(())
    });
    pair.write("one", "2");
    pair.write("two", "2");
    assert_eq!(pair.later().await, 1);
    assert_eq!(pair.later().await, 2);
}
