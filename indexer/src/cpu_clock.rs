//! Processor time of threads: what a part of the work costs, whatever else the machine does.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of the calling thread since it began.
///
/// Cost: one system call, about 0.2 us.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Adds up the processor time of one kind of work on a thread that does others too.
#[derive(Default)]
pub(crate) struct CpuMeter {
    spent: Duration,
}

impl CpuMeter {
    /// Does `work` and counts it.
    pub(crate) fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = thread_cpu();
        let result = work();
        self.spent += thread_cpu().saturating_sub(before);
        result
    }

    /// What was counted.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim: only what is done inside is counted, and waiting is not work.
    #[test]
    fn only_work_inside_is_counted() {
        let mut meter = CpuMeter::default();
        meter.count(|| std::thread::sleep(Duration::from_millis(20)));
        assert!(meter.spent() < Duration::from_millis(15), "{:?}", meter.spent());
        let before = thread_cpu();
        while thread_cpu() < before + Duration::from_millis(3) {}
        let outside = meter.spent();
        let before = thread_cpu();
        meter.count(|| while thread_cpu() < before + Duration::from_millis(3) {});
        assert!(outside < Duration::from_millis(2) && meter.spent() >= Duration::from_millis(3) - Duration::from_micros(100));
    }
}
