//! Defaults on machines that have but one of IPv4 and IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

/// An address that pglease would listen on by default, and that this machine does not have.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

impl Absent {
    /// The outer error: something is wrong with an address that is there.
    pub(crate) fn or_error(address: SocketAddr, source: io::Error) -> Result<Self, io::Error> {
        if is_absent(&source) { Ok(Self { address, source }) } else { Err(source) }
    }
}

/// ip(7), ipv6(7): the kernel speaks no such protocol, or no interface has that address.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|absent| Some(absent.raw_os_error())).contains(&errno)
}

/// What stands for a default where the machine does not have it: loopback or all addresses of the other protocol.
pub(crate) fn counterpart(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counterpart_reaches_as_far() {
        for (address, other) in [("[::]:9632", "0.0.0.0:9632"), ("127.0.0.1:9633", "[::1]:9633")] {
            let (address, other) = (address.parse().unwrap(), other.parse().unwrap());
            assert_eq!(counterpart(address), other);
            assert_eq!(counterpart(other), address);
        }
    }

    #[test]
    fn address_in_use_is_there() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        assert!(Absent::or_error(address, Errno::ADDRINUSE.into()).is_err());
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(Absent::or_error(address, errno.into()).unwrap().address, address);
        }
    }
}
