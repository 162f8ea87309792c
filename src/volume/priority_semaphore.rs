//! A semaphore that serves the most urgent first, and of which a part is kept for demand.
//!
//! It stands wherever requests of all priorities wait for the same thing: calls of a backend, the
//! bytes that a server holds for a session, the streams of a connection.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::backend::Priority;

const CLASSES: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct PrioritySemaphore {
    total: u32,
    reserved: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u32,
    /// By class, the most urgent first. Each is bounded by the requests that there can be.
    waiting: [VecDeque<Waiter>; CLASSES],
}

#[derive(Debug)]
struct Waiter {
    amount: u32,
    granted: oneshot::Sender<PriorityPermit>,
}

/// Permits of a [`PrioritySemaphore`], given back when it is dropped.
#[derive(Debug)]
pub struct PriorityPermit {
    amount: u32,
    of: Arc<PrioritySemaphore>,
}

impl PrioritySemaphore {
    /// `total` permits, the last `reserved` of which only demand gets.
    pub fn new(total: u32, reserved: u32) -> Arc<Self> {
        debug_assert!(reserved < total);
        Arc::new(Self {
            total,
            reserved,
            state: Mutex::new(State {
                free: total,
                waiting: Default::default(),
            }),
        })
    }

    /// How many permits nobody has.
    pub fn free(&self) -> u32 {
        self.lock().free
    }

    /// Waits for `amount` permits: behind all that are as urgent or more, before all others. Who
    /// wants more than there can be for it gets what there can be.
    pub async fn acquire(self: &Arc<Self>, amount: u32, priority: Priority) -> PriorityPermit {
        let class = priority as usize;
        let amount = amount.min(self.total - self.kept_from(class));
        let granted = {
            let mut state = self.lock();
            let first = state.waiting[..=class].iter_mut().all(is_empty);
            if first && self.covers(&state, amount, class) {
                state.free -= amount;
                return self.permit(amount);
            }
            let (grant, granted) = oneshot::channel();
            state.waiting[class].push_back(Waiter {
                amount,
                granted: grant,
            });
            granted
        };
        match granted.await {
            Ok(permit) => permit,
            // The semaphore, which we hold, keeps the other end until it has sent.
            Err(_) => pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permit(self: &Arc<Self>, amount: u32) -> PriorityPermit {
        PriorityPermit {
            amount,
            of: Arc::clone(self),
        }
    }

    /// What of all permits this class never gets.
    fn kept_from(&self, class: usize) -> u32 {
        if class == Priority::Demand as usize {
            0
        } else {
            self.reserved
        }
    }

    fn covers(&self, state: &State, amount: u32, class: usize) -> bool {
        state.free >= amount + self.kept_from(class)
    }

    fn give_back(self: &Arc<Self>, amount: u32) {
        let mut state = self.lock();
        state.free += amount;
        for class in 0..CLASSES {
            while let Some(next) = state.waiting[class].front() {
                let amount = next.amount;
                if !next.granted.is_closed() && !self.covers(&state, amount, class) {
                    return;
                }
                let Some(next) = state.waiting[class].pop_front() else {
                    break;
                };
                if let Err(mut unwanted) = next.granted.send(self.permit(amount)) {
                    unwanted.amount = 0;
                } else {
                    state.free -= amount;
                }
            }
        }
    }
}

/// Whether nobody waits here; forgets those at the front that have given up.
fn is_empty(waiting: &mut VecDeque<Waiter>) -> bool {
    while waiting
        .front()
        .is_some_and(|first| first.granted.is_closed())
    {
        waiting.pop_front();
    }
    waiting.is_empty()
}

impl Drop for PriorityPermit {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.of.give_back(self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    const ALL: [Priority; CLASSES] = [
        Priority::Demand,
        Priority::ReadAhead,
        Priority::Pull,
        Priority::Push,
    ];

    type Acquiring = Pin<Box<dyn Future<Output = PriorityPermit> + Send>>;

    fn ask(semaphore: &Arc<PrioritySemaphore>, amount: u32, priority: Priority) -> Acquiring {
        let semaphore = Arc::clone(semaphore);
        Box::pin(async move { semaphore.acquire(amount, priority).await })
    }

    fn poll(acquiring: &mut Acquiring) -> Option<PriorityPermit> {
        match acquiring
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_most_urgent_goes_first_and_equals_go_in_order() {
        let semaphore = PrioritySemaphore::new(2, 1);
        let all = poll(&mut ask(&semaphore, 2, Priority::Demand)).expect("free");
        let order = [3, 1, 2, 0, 3, 1];
        let mut asking: Vec<_> = order
            .iter()
            .map(|class| ask(&semaphore, 1, ALL[*class]))
            .collect();
        for acquiring in &mut asking {
            assert!(poll(acquiring).is_none());
        }
        drop(all);
        let mut served = Vec::new();
        while served.len() < order.len() {
            let mut permits = Vec::new();
            for (index, acquiring) in asking.iter_mut().enumerate() {
                if !served.contains(&index)
                    && let Some(permit) = poll(acquiring)
                {
                    permits.push(permit);
                    served.push(index);
                }
            }
            assert!(!permits.is_empty(), "{served:?}");
        }
        assert_eq!(served, [3, 1, 5, 2, 0, 4]);
        drop(asking);
        assert_eq!(semaphore.free(), 2);
    }

    #[test]
    fn what_is_kept_for_demand_nobody_else_gets() {
        let semaphore = PrioritySemaphore::new(8, 3);
        let bulk = poll(&mut ask(&semaphore, 100, Priority::Pull)).expect("all that it can get");
        assert_eq!(semaphore.free(), 3);
        let mut more = ask(&semaphore, 1, Priority::ReadAhead);
        assert!(poll(&mut more).is_none());
        let demand = poll(&mut ask(&semaphore, 3, Priority::Demand)).expect("kept");
        drop(demand);
        assert!(poll(&mut more).is_none());
        drop(bulk);
        assert!(poll(&mut more).is_some());
        assert_eq!(semaphore.free(), 8);
    }

    #[test]
    fn who_gives_up_holds_nobody_up_and_keeps_nothing() {
        let semaphore = PrioritySemaphore::new(4, 0);
        let three = poll(&mut ask(&semaphore, 3, Priority::Pull)).expect("free");
        let mut large = ask(&semaphore, 4, Priority::Demand);
        assert!(poll(&mut large).is_none());
        let mut behind = ask(&semaphore, 1, Priority::Push);
        assert!(poll(&mut behind).is_none());
        drop(large);
        assert!(poll(&mut ask(&semaphore, 1, Priority::Pull)).is_some());
        // Granted, and dropped before it looked.
        drop(three);
        drop(behind);
        assert_eq!(semaphore.free(), 4);
    }

    proptest! {
        /// Whatever comes, waits, leaves and gives up: no permit is lost or given twice, what is
        /// kept for demand stays so, and in the end everybody who still waits is served.
        #[test]
        fn no_permit_is_lost(
            total in 1u32..12,
            reserved in 0u32..12,
            steps in prop::collection::vec((0u8..4, 0usize..4, 1u32..8, 0usize..16), 1..120),
        ) {
            let reserved = reserved.min(total - 1);
            let semaphore = PrioritySemaphore::new(total, reserved);
            let mut asking: Vec<(usize, Acquiring)> = Vec::new();
            let mut held: Vec<(usize, PriorityPermit)> = Vec::new();
            for (what, class, amount, which) in steps {
                match what {
                    0 | 1 => asking.push((class, ask(&semaphore, amount, ALL[class]))),
                    2 if !held.is_empty() => drop(held.remove(which % held.len())),
                    3 if !asking.is_empty() => drop(asking.remove(which % asking.len())),
                    _ => {}
                }
                let mut still = Vec::new();
                for (class, mut acquiring) in asking {
                    match poll(&mut acquiring) {
                        Some(permit) => held.push((class, permit)),
                        None => still.push((class, acquiring)),
                    }
                }
                asking = still;
                let taken: u32 = held.iter().map(|(_, permit)| permit.amount).sum();
                prop_assert_eq!(semaphore.free(), total - taken);
                let bulk: u32 = held.iter().filter(|(class, _)| *class > 0)
                    .map(|(_, permit)| permit.amount).sum();
                prop_assert!(bulk <= total - reserved);
            }
            held.clear();
            while !asking.is_empty() {
                let before = asking.len();
                asking.retain_mut(|(_, acquiring)| poll(acquiring).is_none());
                prop_assert!(asking.len() < before, "somebody waits for ever");
            }
            prop_assert_eq!(semaphore.free(), total);
        }
    }
}
