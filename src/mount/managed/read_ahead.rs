//! Sequential misses: how far to read ahead of them. No I/O, no clock.

use crate::volume::geometry::ChunkIndex;

/// How many runs are followed at once.
const RUNS_MAX: usize = 8;

/// What the misses look like.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// The most recently continued one last.
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    /// The chunk of the last miss.
    last: u64,
    /// The first chunk that was not asked for yet.
    asked_until: u64,
    /// How many chunks to ask for the next time.
    grows_by: u64,
}

impl ReadAhead {
    /// A miss in `chunk`; gives the chunks that will probably be asked for next, at most `chunks_max`.
    pub(super) fn missed(
        &mut self,
        chunk: ChunkIndex,
        chunks_max: u64,
    ) -> impl Iterator<Item = ChunkIndex> + use<> {
        let chunk = chunk.0;
        let known = self
            .runs
            .iter()
            .position(|run| chunk > run.last && chunk <= run.asked_until);
        let ahead = match known {
            Some(index) => {
                let mut run = self.runs.remove(index);
                let grows_by = (run.grows_by * 2).min(chunks_max);
                let from = run.asked_until.max(chunk + 1);
                let until = (chunk + 1 + grows_by).max(from);
                run = Run {
                    last: chunk,
                    asked_until: until,
                    grows_by,
                };
                self.runs.push(run);
                from..until
            }
            None if self.runs.iter().any(|run| run.last == chunk) => 0..0,
            None => {
                if self.runs.len() == RUNS_MAX {
                    self.runs.remove(0);
                }
                self.runs.push(Run {
                    last: chunk,
                    asked_until: chunk + 1,
                    grows_by: 1,
                });
                0..0
            }
        };
        ahead.map(ChunkIndex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(it: &mut ReadAhead, chunk: u64, max: u64) -> Vec<u64> {
        it.missed(ChunkIndex(chunk), max)
            .map(|chunk| chunk.0)
            .collect()
    }

    #[test]
    fn it_grows_with_the_run_up_to_its_limit() {
        let mut it = ReadAhead::default();
        assert_eq!(ahead(&mut it, 10, 8), [0; 0]);
        assert_eq!(ahead(&mut it, 11, 8), [12, 13]);
        assert_eq!(ahead(&mut it, 12, 8), [14, 15, 16]);
        assert_eq!(ahead(&mut it, 17, 8), (18..26).collect::<Vec<_>>());
        assert_eq!(ahead(&mut it, 26, 8), (27..35).collect::<Vec<_>>());
    }

    #[test]
    fn random_misses_ask_for_nothing_and_do_not_end_a_run() {
        let mut it = ReadAhead::default();
        ahead(&mut it, 10, 8);
        for chunk in [500, 90, 300] {
            assert_eq!(ahead(&mut it, chunk, 8), [0; 0]);
        }
        assert_eq!(ahead(&mut it, 11, 8), [12, 13]);
        assert_eq!(ahead(&mut it, 11, 8), [0; 0], "the same chunk again");
    }

    #[test]
    fn a_limit_of_nothing_switches_it_off() {
        let mut it = ReadAhead::default();
        for chunk in 0..20 {
            assert_eq!(ahead(&mut it, chunk, 0), [0; 0]);
        }
    }
}
