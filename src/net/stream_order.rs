//! Which of a connection's streams sends first: the more urgent one, and of two that are equally
//! urgent the one that was asked first.
//!
//! QUIC's own ways are worse. A share for each makes all of them late; and quinn without shares ends
//! what it has begun before it looks at anything more urgent, which at the start of a connection is
//! several round trips for a chunk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::volume::Priority;

const CLASSES: usize = 4;

/// How many places a class has. Who comes later shares the last one.
const PLACES: u32 = 1 << 28;

/// The order of a connection's streams.
#[derive(Debug, Default)]
pub(super) struct StreamOrder(Mutex<[Class; CLASSES]>);

#[derive(Debug, Default, Clone, Copy)]
struct Class {
    /// The place of the next stream.
    next: u32,
    /// Streams that have not ended. The places begin anew when there is none.
    open: u32,
}

/// A stream's place, for as long as the stream is in use.
#[derive(Debug)]
pub(super) struct Place {
    class: usize,
    place: u32,
    order: Arc<StreamOrder>,
}

impl StreamOrder {
    /// The place of a stream that begins now.
    pub(super) fn take(self: &Arc<Self>, priority: Priority) -> Place {
        let class = match priority {
            Priority::Demand => 3,
            Priority::ReadAhead => 2,
            Priority::Pull => 1,
            Priority::Push => 0,
        };
        let mut classes = self.lock();
        let Class { next, open } = &mut classes[class];
        let place = *next;
        *next = (place + 1).min(PLACES - 1);
        *open += 1;
        Place {
            class,
            place,
            order: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Class; CLASSES]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// As quinn takes it: the higher goes first.
    pub(super) fn priority(&self) -> i32 {
        let places_below = self.class as u32 * PLACES;
        (places_below + (PLACES - 1 - self.place)) as i32
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut classes = self.order.lock();
        let class = &mut classes[self.class];
        class.open -= 1;
        if class.open == 0 {
            class.next = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urgent_go_first_and_then_those_that_were_asked_first() {
        let order = Arc::new(StreamOrder::default());
        let asked = [
            Priority::Push,
            Priority::Demand,
            Priority::Pull,
            Priority::Demand,
            Priority::ReadAhead,
            Priority::Pull,
        ];
        let places: Vec<_> = asked.iter().map(|it| order.take(*it)).collect();
        let mut sent: Vec<usize> = (0..asked.len()).collect();
        sent.sort_by_key(|stream| std::cmp::Reverse(places[*stream].priority()));
        assert_eq!(sent, [1, 3, 4, 2, 5, 0]);
        // The control stream's priority is above all of them.
        assert!(places[1].priority() < i32::MAX);
    }

    #[test]
    fn places_begin_anew_when_all_have_ended_and_the_last_one_is_shared() {
        let order = Arc::new(StreamOrder::default());
        let (first, second) = (order.take(Priority::Pull), order.take(Priority::Pull));
        let highest = first.priority();
        assert!(second.priority() < highest);
        drop(first);
        assert!(order.take(Priority::Pull).priority() < second.priority());
        drop(second);
        assert_eq!(order.take(Priority::Pull).priority(), highest);
        order.lock()[1].next = PLACES - 2;
        let places: Vec<_> = (0..3).map(|_| order.take(Priority::Pull)).collect();
        assert_eq!(places[1].priority(), places[2].priority());
        assert!(places[2].priority() > order.take(Priority::Push).priority());
    }
}
