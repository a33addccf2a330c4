//! Single values: text in, a value that the program can use out, or what is wrong with the text.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use zeroize::Zeroizing;

use super::error::Problem;
use super::{ListenAddress, is_open_key};

/// Anything without control characters.
pub(crate) fn text(text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        Err(Problem::Empty)
    } else if text.chars().any(char::is_control) {
        Err(Problem::ControlCharacter)
    } else {
        Ok(text.to_owned())
    }
}

/// A name, or `*` for any.
pub(crate) fn pattern(pattern: &str) -> Result<Option<String>, Problem> {
    match pattern {
        ANY => Ok(None),
        name => text(name).map(Some),
    }
}

/// Zero to ten years, as humantime reads it.
pub(crate) fn duration(text: &str) -> Result<Duration, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.starts_with('-') {
        return Err(Problem::Negative);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::NoUnit);
    }
    // humantime 2.4 can overflow, and panic, at the very end of what a Duration holds.
    if text.len() > MAX_DURATION_LEN || longest_number(text) > MAX_DURATION_DIGITS {
        return Err(Problem::TooLong);
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration > MAX_DURATION => Err(Problem::TooLong),
        Ok(duration) => Ok(duration),
        Err(humantime::DurationError::NumberOverflow) => Err(Problem::TooLong),
        Err(_) => Err(Problem::NotADuration),
    }
}

/// As [`duration`], but zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, Problem> {
    match duration(text)? {
        Duration::ZERO => Err(Problem::Zero),
        duration => Ok(duration),
    }
}

fn longest_number(text: &str) -> usize {
    text.split(|character: char| !character.is_ascii_digit()).map(str::len).max().unwrap_or_default()
}

/// A whole number, bounds included.
pub(crate) fn integer(text: &str, min: u64, max: u64) -> Result<usize, Problem> {
    let number = text.trim().parse().ok().filter(|number| (min..=max).contains(number));
    number.and_then(|number| usize::try_from(number).ok()).ok_or(Problem::NotInRange { min, max })
}

/// The same, or `None` for the word.
pub(crate) fn integer_or(
    text: &str,
    min: u64,
    max: u64,
    word: &'static str,
) -> Result<Option<usize>, Problem> {
    if text.trim() == word {
        return Ok(None);
    }
    integer(text, min, max).map(Some).map_err(|_| Problem::NotInRangeOr { min, max, word })
}

/// Bytes, or a quantity of Kubernetes in whole units.
pub(crate) fn memory(text: &str) -> Result<u64, Problem> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).unwrap_or_default();
    let factor = MEMORY_UNITS.iter().find_map(|(known, factor)| (*known == unit).then_some(*factor));
    let number = number.parse::<u64>().ok();
    number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)).ok_or(Problem::NotAMemory)
}

pub(crate) fn boolean(text: &str) -> Result<bool, Problem> {
    text.trim().parse().map_err(|_| Problem::NotABoolean)
}

/// An IP address with a port.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| Problem::NotAnAddress { example: "\"[::]:9632\"" })
}

/// A loopback address with a port, in its one form; nothing is off.
pub(crate) fn admin_address(text: &str) -> Result<Option<SocketAddr>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let unknown = Problem::NotAnAddress { example: "\"127.0.0.1:9633\"" };
    let address = text.parse::<SocketAddr>().map_err(|_| unknown)?;
    if !is_loopback(address.ip()) {
        return Err(Problem::AdminNotLoopback);
    }
    // What asks there names it as Host, and is answered where that is a plain address of loopback.
    Ok(Some(SocketAddr::new(address.ip().to_canonical(), address.port())))
}

/// `localhost` or an IP address, with a port.
pub(crate) fn listen_address(text: &str) -> Result<ListenAddress, Problem> {
    let named = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let unknown = Problem::NotAListenAddress { address: text.to_owned() };
    match named {
        Some(port) => Ok(ListenAddress::Localhost { port }),
        None => text.parse().map(ListenAddress::Socket).map_err(|_| unknown),
    }
}

/// Whether only this machine reaches it.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// A path, wherever it leads.
pub(crate) fn path(path: &str) -> Result<PathBuf, Problem> {
    text(path).map(PathBuf::from)
}

/// Path of a file that can be read now and has something in it.
pub(crate) fn readable_file(path: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text(path)?);
    let mut file = open_file(&path)?;
    // It may hold a secret.
    let mut beginning = Zeroizing::new([0; BEGINNING_LEN]);
    let read = file.read(beginning.as_mut_slice()).map_err(unreadable)?;
    let beginning = beginning.get(..read).unwrap_or_default();
    if beginning.iter().all(u8::is_ascii_whitespace) { Err(Problem::EmptyFile) } else { Ok(path) }
}

/// As [`readable_file`], with a certificate in it, or what looks like one.
pub(crate) fn certificate_file(path: &str) -> Result<PathBuf, Problem> {
    file_with(path, PEM_CERTIFICATE, Problem::NoCertificate)
}

/// As [`readable_file`], with a private key in it, or what looks like one.
pub(crate) fn key_file(path: &str) -> Result<PathBuf, Problem> {
    file_with(path, PEM_KEY, Problem::NoKey)
}

/// As [`key_file`], and nobody may read it whom libpq would not let.
pub(crate) fn own_key_file(path: &str) -> Result<PathBuf, Problem> {
    let path = key_file(path)?;
    let metadata = std::fs::metadata(&path).map_err(unreadable)?;
    if is_open_key(metadata.uid(), metadata.mode()) { Err(Problem::OpenKey) } else { Ok(path) }
}

/// As [`readable_file`], with a list of revoked certificates in it, or what looks like one.
pub(crate) fn crl_file(path: &str) -> Result<PathBuf, Problem> {
    file_with(path, PEM_CRL, Problem::NoRevocationList)
}

fn file_with(path: &str, wanted: &[u8], missing: Problem) -> Result<PathBuf, Problem> {
    let path = readable_file(path)?;
    let mut text = Zeroizing::new(Vec::new());
    open_file(&path)?.take(MAX_PEM_FILE_LEN).read_to_end(&mut text).map_err(unreadable)?;
    let is_there = text.windows(wanted.len()).any(|window| window == wanted);
    if is_there { Ok(path) } else { Err(missing) }
}

/// Path of a directory that can be listed now.
pub(crate) fn directory(path: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text(path)?);
    if !std::fs::metadata(&path).map_err(unreadable)?.is_dir() {
        return Err(Problem::NotADirectory);
    }
    std::fs::read_dir(&path).map_err(unreadable)?;
    Ok(path)
}

/// Text of several lines, of which a tab may be part.
pub(crate) fn lines(text: &str) -> Result<String, Problem> {
    let is_strange = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
    if text.chars().any(is_strange) { Err(Problem::ControlCharacter) } else { Ok(text.to_owned()) }
}

/// Path of a file that can be made, or made anew, by moving another there.
pub(crate) fn replaceable_file(path: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text(path)?);
    let Some(directory) = path.parent().filter(|_| path.is_absolute()) else { return Ok(path) };
    let no_directory =
        |reason: String| Problem::NoDirectoryFor { directory: directory.display().to_string(), reason };
    match std::fs::metadata(directory) {
        Ok(metadata) if !metadata.is_dir() => return Err(no_directory("is none".to_owned())),
        Ok(_) => {}
        Err(error) => return Err(no_directory(format!("cannot be used: {error}"))),
    }
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, directory, wanted, AtFlags::EACCESS)
        .map_err(|error| no_directory(format!("cannot be written to: {}", std::io::Error::from(error))))?;
    match std::fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_symlink() => Err(Problem::IsALink),
        Ok(metadata) if metadata.is_dir() => Err(Problem::IsADirectory),
        Ok(metadata) if !metadata.is_file() => Err(Problem::IsSpecial),
        Ok(_) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(unreadable(error)),
    }
}

/// Permissions in octal, as chmod(1) takes them.
pub(crate) fn file_mode(text: &str) -> Result<u32, Problem> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or(Problem::NotAFileMode)
}

/// The file, if it is one: opening a pipe would wait for whoever writes into it.
pub(crate) fn open_file(path: &Path) -> Result<File, Problem> {
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Problem::NotAFile);
    }
    File::open(path).map_err(unreadable)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn unreadable(error: std::io::Error) -> Problem {
    Problem::Unreadable { reason: error.to_string() }
}

/// Kubernetes API, Quantity.
const MEMORY_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
];
/// Matches every database and user.
const ANY: &str = "*";
/// Ten years.
const MAX_DURATION: Duration = Duration::from_hours(10 * 365 * 24);
const MAX_DURATION_LEN: usize = 64;
/// Of one number: enough for ten years of seconds.
const MAX_DURATION_DIGITS: usize = 9;
/// A certificate begins so (RFC 7468 §5.1).
const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const PEM_CRL: &[u8] = b"-----BEGIN X509 CRL-----";
/// So ends the line before a key: of PKCS#8, PKCS#1 or SEC1 (RFC 7468 §10, RFC 5915 §4).
const PEM_KEY: &[u8] = b"PRIVATE KEY-----";
/// Far more than all CAs of a system.
const MAX_PEM_FILE_LEN: u64 = 4 * 1024 * 1024;
/// How much of a file is looked at for something other than blanks.
const BEGINNING_LEN: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn admin_address_is_of_loopback_however_it_is_written() {
        for refused in [
            "0.0.0.0:9633",
            "[::]:9633",
            "10.0.0.1:9633",
            "128.0.0.1:9633",
            "[::2]:9633",
            "[fe80::1]:9633",
            "[::ffff:0.0.0.0]:9633",
            "[::ffff:10.0.0.1]:9633",
            "[::127.0.0.1]:9633",
        ] {
            assert_eq!(admin_address(refused), Err(Problem::AdminNotLoopback), "{refused}");
        }
        for (taken, is) in [
            ("127.0.0.1:9633", "127.0.0.1:9633"),
            ("127.255.255.254:1", "127.255.255.254:1"),
            ("[::1]:9633", "[::1]:9633"),
            ("[::ffff:127.0.0.1]:9633", "127.0.0.1:9633"),
        ] {
            assert_eq!(admin_address(taken), Ok(is.parse().ok()), "{taken}");
        }
        for other in ["localhost:9633", "127.0.0.1", ":9633", "127.0.0.1:99999", "127.1:9633", "0x7f000001:1"]
        {
            assert!(matches!(admin_address(other), Err(Problem::NotAnAddress { .. })), "{other}");
        }
    }

    #[test]
    fn durations_are_read_or_refused() {
        for (text, expected) in [
            ("0s", Ok(Duration::ZERO)),
            (" 250ms ", Ok(Duration::from_millis(250))),
            ("1h 30m", Ok(Duration::from_mins(90))),
            ("1.5s", Ok(Duration::from_millis(1500))),
            ("10years", Err(Problem::TooLong)),
            ("3650d", Ok(MAX_DURATION)),
            ("3650d 1ns", Err(Problem::TooLong)),
            ("18446744073709551615s 1000ms", Err(Problem::TooLong)),
            ("99999999999999999999y", Err(Problem::TooLong)),
            ("-5s", Err(Problem::Negative)),
            ("30", Err(Problem::NoUnit)),
            ("0", Err(Problem::NoUnit)),
            ("", Err(Problem::Empty)),
            ("s", Err(Problem::NotADuration)),
            ("5 parsecs", Err(Problem::NotADuration)),
            ("∞", Err(Problem::NotADuration)),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
        assert_eq!(positive_duration("0ms"), Err(Problem::Zero));
    }

    #[test]
    fn listen_addresses_are_localhost_or_numbers() {
        let socket = |text: &str| Ok(ListenAddress::Socket(text.parse().unwrap()));
        let unknown = |text: &str| Err(Problem::NotAListenAddress { address: text.to_owned() });

        for (text, expected) in [
            ("localhost:5432", Ok(ListenAddress::Localhost { port: 5432 })),
            ("localhost:0", Ok(ListenAddress::Localhost { port: 0 })),
            ("127.0.0.1:5432", socket("127.0.0.1:5432")),
            ("127.0.0.2:0", socket("127.0.0.2:0")),
            ("[::1]:5432", socket("[::1]:5432")),
            ("0.0.0.0:5432", socket("0.0.0.0:5432")),
            ("[::]:5432", socket("[::]:5432")),
            ("10.0.0.1:5432", socket("10.0.0.1:5432")),
            ("localhost", unknown("localhost")),
            ("localhost:65536", unknown("localhost:65536")),
            ("db:5432", unknown("db:5432")),
            ("::1:5432", unknown("::1:5432")),
            ("", unknown("")),
        ] {
            assert_eq!(listen_address(text), expected, "{text}");
        }
    }

    #[test]
    fn memory_is_bytes_or_whole_units() {
        for (text, bytes) in [("67108864", 64 << 20), ("64Mi", 64 << 20), ("1G", 1_000_000_000), ("0", 0)] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "Mi", "-1", "1.5Gi", "64MB", "99999999999999999999", "99999999999999Gi"] {
            assert_eq!(memory(text), Err(Problem::NotAMemory), "{text}");
        }
    }

    #[test]
    fn file_modes_are_octal() {
        for (text, mode) in [("0660", 0o660), ("660", 0o660), ("0777", 0o777), ("000", 0)] {
            assert_eq!(file_mode(text), Ok(mode), "{text}");
        }
        for text in ["", "0", "66", "0668", "+660", "0o66", "1777", "00660", "rw-rw----"] {
            assert_eq!(file_mode(text), Err(Problem::NotAFileMode), "{text}");
        }
    }

    #[test]
    fn files_must_be_there_and_hold_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let check = || readable_file(path.to_str().unwrap());

        assert!(matches!(check(), Err(Problem::Unreadable { .. })));
        std::fs::write(&path, "").unwrap();
        assert_eq!(check(), Err(Problem::EmptyFile));
        std::fs::write(&path, " \n").unwrap();
        assert_eq!(check(), Err(Problem::EmptyFile));
        std::fs::write(&path, "eyJ").unwrap();
        assert_eq!(check(), Ok(path.clone()));
        assert_eq!(readable_file(dir.path().to_str().unwrap()), Err(Problem::NotAFile));
        assert_eq!(readable_file("/dev/null"), Err(Problem::NotAFile));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", durations in "([0-9]{1,22}(s|ms|y|ns| ){0,2}){0,4}") {
            let _ = (duration(&text), duration(&durations), listen_address(&text), pattern(&text));
        }
    }
}
