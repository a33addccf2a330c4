//! Quantities of Kubernetes: what it would take, and how much that is.

/// What `text` says, or `None` where Kubernetes would not take it, or where it is negative or too large to count.
///
/// Kubernetes API, Quantity: a number with a suffix of powers of 1000 or 1024, or an exponent.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    if number.len() > MAX_NUMBER_LEN {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let factor = match SUFFIXES.iter().find(|(known, _)| *known == suffix) {
        Some((_, factor)) => *factor,
        None => exponent(suffix)?,
    };
    Some(number * factor)
}

fn exponent(suffix: &str) -> Option<f64> {
    let power = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = power.parse().ok().filter(|power| (-9..=18).contains(power))?;
    Some(10_f64.powi(power))
}

/// A memory quantity: whole bytes, at least one.
pub(crate) fn is_memory(text: &str) -> bool {
    parse(text).is_some_and(|bytes| bytes >= 1.0 && bytes.fract() == 0.0 && bytes <= MAX_BYTES)
}

/// A CPU quantity: Kubernetes counts thousandths.
pub(crate) fn is_cpu(text: &str) -> bool {
    let thousandths = |cpus: f64| (cpus * 1000.0).round();
    parse(text).is_some_and(|cpus| {
        thousandths(cpus) >= 1.0 && cpus <= MAX_CPUS && (cpus * 1000.0 - thousandths(cpus)).abs() < 1e-6
    })
}

const MAX_NUMBER_LEN: usize = 18;
/// 1 EiB.
const MAX_BYTES: f64 = 1_152_921_504_606_846_976.0;
const MAX_CPUS: f64 = 100_000.0;
const SUFFIXES: &[(&str, f64)] = &[
    ("", 1.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", MAX_BYTES),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, expected) in [
            ("16Mi", Some(16_777_216.0)),
            ("1.5Gi", Some(1_610_612_736.0)),
            ("128M", Some(128_000_000.0)),
            ("1e3", Some(1000.0)),
            ("1E3", Some(1000.0)),
            ("2E", Some(2e18)),
            ("100m", Some(0.1)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("0", Some(0.0)),
            ("", None),
            ("Mi", None),
            ("-1Mi", None),
            ("+1Mi", None),
            ("1 Mi", None),
            ("1mi", None),
            ("1MB", None),
            ("1e99", None),
            ("0x10", None),
            ("1.2.3", None),
            ("NaN", None),
            ("inf", None),
            ("ten", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn memory_is_in_bytes_and_cpu_in_thousandths() {
        for (text, memory, cpu) in [
            ("16Mi", true, false),
            ("64M", true, false),
            ("1", true, true),
            ("0", false, false),
            ("100m", false, true),
            ("0.1", false, true),
            ("0.0001", false, false),
            ("1.5Ki", true, true),
            ("2E", false, false),
        ] {
            assert_eq!((is_memory(text), is_cpu(text)), (memory, cpu), "{text}");
        }
    }
}
