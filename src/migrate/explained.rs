//! Why an attempt or a migration ended, for people.

use std::fmt;

use super::protocol::Reason;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
                Reason::Busy { by } => format!("{by} is having it moved"),
                Reason::Moved { to, epoch } => format!("it has moved to {to} (epoch {})", epoch.0),
                Reason::Full => "the seeder has as many leechers as it takes".to_owned(),
                Reason::SeederAborted => "it was given up at the seeder".to_owned(),
                Reason::LeecherAborted => "it was given up at the leecher".to_owned(),
                Reason::HoldLimit => {
                    "requests would have been held for longer than the seeder's --hold-limit".to_owned()
                }
                Reason::Disconnected => "the connection was lost".to_owned(),
                Reason::Asked => "the leecher lost the connection before it was decided".to_owned(),
                Reason::Over => "that attempt was over".to_owned(),
                Reason::HookFailed(why) => format!("at the seeder {why}"),
                Reason::StoreFailed(why) => format!("a store failed: {why}"),
                Reason::ProofDiffers => {
                    "what was pulled is not what the seeder has; each host reads all of its own store anew, \
                     and what differs is pulled again"
                        .to_owned()
                }
                Reason::AnotherVolume => {
                    "the store has to do with another volume; give another --store".to_owned()
                }
                Reason::Outdated => {
                    "the store's volume has left this host since the seeder had it: what is there is old"
                        .to_owned()
                }
        };
        f.write_str(&text)
    }
}
