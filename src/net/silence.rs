//! Whether a server is still there, in less time than the transport takes to give it up.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::remote::{Link, Remote};
use crate::AsyncBackend;
use crate::volume::Priority;

/// How often it is asked, and looked, within the time of silence.
const LOOKS: u32 = 4;

impl Remote {
    /// Waits until no packet of the server has come for `time`, though it was asked for something; or
    /// until the connection is gone. A server that is slow to answer is not silent: its host
    /// acknowledges what it gets. After the end of the session by this side nobody is silent, and it
    /// waits for ever.
    pub async fn silent(&self, time: Duration) {
        let block_bytes = self.geometry().logical_block_bytes();
        let mut block = vec![0; block_bytes as usize];
        let mut heard = self.heard();
        let mut since = Instant::now();
        while heard.is_some() {
            let asked = async {
                let _ = self.read_at(&mut block, 0, Priority::Demand).await;
                std::future::pending::<()>().await;
            };
            let _ = timeout(time / LOOKS, asked).await;
            let now = self.heard();
            if now != heard {
                (heard, since) = (now, Instant::now());
            } else if since.elapsed() >= time {
                return;
            }
        }
        if matches!(&*self.link(), Link::Closed) {
            std::future::pending::<()>().await;
        }
    }

    /// The session and how many packets came in it; `None` where there is none.
    fn heard(&self) -> Option<(u64, u64)> {
        match &*self.link() {
            Link::Up(session) => {
                Some((session.number, session.connection.stats().udp_rx.datagrams))
            }
            Link::Away(_) | Link::Dead(_) | Link::Closed => None,
        }
    }
}
