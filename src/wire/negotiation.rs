//! NegotiateProtocolVersion as a server sends it. PostgreSQL manual, "Message Formats".

use crate::wire::startup::ProtocolVersion;

/// What a server may speak with us: `least` at least, `most` at most, which is what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) least: ProtocolVersion,
    pub(crate) most: ProtocolVersion,
}

/// Why a server's counter-offer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NegotiationError {
    #[error("counter-offer is not of the form that it has")]
    Layout,
    #[error("counter-offer is {offered}, where {most} was asked for")]
    Higher { offered: ProtocolVersion, most: ProtocolVersion },
    #[error("counter-offer is {offered}, which is no version of the protocol")]
    NoVersion { offered: ProtocolVersion },
    #[error("protocol {offered} is the newest that upstream speaks, and min_protocol_version is {least}")]
    TooOld { offered: ProtocolVersion, least: ProtocolVersion },
    #[error("counter-offer refuses options that were not asked for")]
    Options,
}

impl Versions {
    /// Takes the body of a NegotiateProtocolVersion: Int32 newest version, Int32 number of options that the server
    /// does not know, of which none was sent, their names.
    pub(crate) fn judge(self, body: &[u8]) -> Result<ProtocolVersion, NegotiationError> {
        let (&version, rest) = body.split_first_chunk().ok_or(NegotiationError::Layout)?;
        let (&options, names) = rest.split_first_chunk().ok_or(NegotiationError::Layout)?;
        let offered = ProtocolVersion(u32::from_be_bytes(version));
        if u32::from_be_bytes(options) != 0 {
            return Err(NegotiationError::Options);
        }
        if !names.is_empty() {
            return Err(NegotiationError::Layout);
        }
        match offered {
            // "3.1 was never used": not between 3.0 and 3.2.
            _ if offered.major() != 3 || offered.minor() == 1 => Err(NegotiationError::NoVersion { offered }),
            _ if offered.0 > self.most.0 => Err(NegotiationError::Higher { offered, most: self.most }),
            _ if offered.0 < self.least.0 => Err(NegotiationError::TooOld { offered, least: self.least }),
            _ => Ok(offered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3_0: ProtocolVersion = ProtocolVersion(0x0003_0000);
    const V3_2: ProtocolVersion = ProtocolVersion(0x0003_0002);

    fn body(version: u32, options: u32, names: &[u8]) -> Vec<u8> {
        [&version.to_be_bytes()[..], &options.to_be_bytes(), names].concat()
    }

    #[test]
    fn counter_offer_is_taken_between_what_is_asked_and_what_will_do() {
        let any = Versions { least: V3_0, most: V3_2 };
        assert_eq!(any.judge(&body(0x0003_0000, 0, b"")), Ok(V3_0));
        assert_eq!(any.judge(&body(0x0003_0002, 0, b"")), Ok(V3_2));

        let new = Versions { least: V3_2, most: V3_2 };
        let too_old = NegotiationError::TooOld { offered: V3_0, least: V3_2 };
        assert_eq!(new.judge(&body(0x0003_0000, 0, b"")), Err(too_old));

        let old = Versions { least: V3_0, most: V3_0 };
        let higher = NegotiationError::Higher { offered: V3_2, most: V3_0 };
        assert_eq!(old.judge(&body(0x0003_0002, 0, b"")), Err(higher));
        for version in [0, 0x0002_0000, 0x0003_0001, 0x0004_0000, u32::MAX] {
            let offered = ProtocolVersion(version);
            assert_eq!(any.judge(&body(version, 0, b"")), Err(NegotiationError::NoVersion { offered }));
        }
    }

    #[test]
    fn options_that_nobody_sent_and_cut_bodies_are_refused() {
        let any = Versions { least: V3_0, most: V3_2 };
        assert_eq!(any.judge(&body(0x0003_0000, 1, b"_pq_.x\0")), Err(NegotiationError::Options));
        assert_eq!(any.judge(&body(0x0003_0000, u32::MAX, b"")), Err(NegotiationError::Options));
        assert_eq!(any.judge(&body(0x0003_0000, 0, b"x\0")), Err(NegotiationError::Layout));
        let whole = body(0x0003_0000, 0, b"");
        for cut in 0..whole.len() {
            assert_eq!(any.judge(&whole[..cut]), Err(NegotiationError::Layout), "cut at {cut}");
        }
    }
}
