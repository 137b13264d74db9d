//! Who is at the other end of a socket.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

/// A process as the kernel knows it since it connected or listened.
pub struct Peer {
    /// 0: in a PID namespace that is not seen from here.
    pid: i32,
    uid: u32,
}

impl Peer {
    /// Not by rustix, whose type of a process id has no 0.
    pub fn of(socket: &UnixStream) -> io::Result<Self> {
        let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the kernel writes `len` bytes at most to `found`, any of whose bit patterns is a value.
        let got =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut found).cast(), &raw mut len) };
        match got {
            0 => Ok(Self { pid: found.pid, uid: found.uid }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether it is of this user, or root's.
    pub fn is_trusted(&self) -> bool {
        self.uid == rustix::process::geteuid().as_raw() || self.uid == 0
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            0 => write!(f, "a process of user {} in another PID namespace", self.uid),
            pid => write!(f, "process {pid} of user {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Claim: the two ends of a pair are this process and this user.
    #[test]
    fn the_other_end_is_known() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert!(peer.is_trusted());
        assert_eq!(peer.to_string(), format!("process {} of user {}", std::process::id(), rustix::process::geteuid().as_raw()));
    }
}
