//! The TCP sockets between hosts: congestion control, liveness, delay.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::{Congestion, Link};

/// Questions without an answer before the kernel gives a silent connection up.
const KEEPALIVE_RETRIES: u32 = 4;

/// Prepares a connection. Says which congestion control is in force: BBR is the system's to grant, and a host where it
/// is not must show that (one CUBIC connection got 9 of 200 Mbit/s on a lossy long link, one BBR connection 191).
pub fn prepare(stream: &TcpStream, config: &Link) -> io::Result<String> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let silence = config.keepalive.duration();
    let pause = (silence / KEEPALIVE_RETRIES).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(silence).with_interval(pause).with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    // Data nobody acknowledges ends the connection as silence does.
    socket.set_tcp_user_timeout(Some(silence * 2))?;
    if config.congestion_control == Congestion::Bbr {
        // Refused where the module is missing or not allowed; what is in force is asked below.
        let _ = socket.set_tcp_congestion(b"bbr");
    }
    congestion_control(stream)
}

/// Which congestion control is in force on a connection, as the kernel names it.
pub fn congestion_control(stream: &TcpStream) -> io::Result<String> {
    let name = SockRef::from(stream).tcp_congestion()?;
    let name: Vec<u8> = name.into_iter().take_while(|b| *b != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_prepared_socket_tells_its_congestion_control() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let allowed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        let system = prepare(&stream, &Link { congestion_control: Congestion::System, ..Link::default() }).unwrap();
        assert!(allowed.split_whitespace().any(|name| name == system), "{system:?} of {allowed:?}");
        let wanted = prepare(&stream, &Link::default()).unwrap();
        if allowed.contains("bbr") && rustix::process::geteuid().is_root() {
            assert_eq!(wanted, "bbr");
        } else {
            assert_eq!(wanted, system, "what is in force is told, not what was wanted");
        }
        assert!(SockRef::from(&stream).keepalive().unwrap());
    }
}
