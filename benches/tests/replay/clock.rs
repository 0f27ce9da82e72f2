//! The system's clocks, replaced by virtual ones for threads that run worlds.

use std::time::{Duration, Instant};

use larder_benches::seeds::in_virtual_time;
use larder_benches::virtual_clock;

/// What the standard library asks for the time, in place of the C library's function of this name. The times that a
/// process counts for itself, such as that of its processor, remain the machine's.
///
/// # Safety
/// As that of the C library: `time` is valid for writing, or null.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let is_virtual = matches!(clock, libc::CLOCK_MONOTONIC | libc::CLOCK_REALTIME | libc::CLOCK_BOOTTIME);
    if let Some(now) = virtual_clock::now().filter(|_| is_virtual && !time.is_null()) {
        let now = libc::timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() };
        // SAFETY: the caller says that it is valid, and it is not null.
        unsafe { time.write(now) };
        return 0;
    }
    // SAFETY: these are its arguments, and they are the caller's.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int }
}

#[test]
fn the_standard_librarys_time_is_virtual_in_a_world_and_the_machines_outside() {
    let hour = Duration::from_secs(3600);
    let outside = Instant::now();
    in_virtual_time(async {
        let began = (Instant::now(), std::time::SystemTime::now());
        // However long this takes the machine, in the world it takes no time.
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(began.0, Instant::now());
        tokio::time::sleep(hour).await;
        assert_eq!(began.0.elapsed(), hour);
        assert_eq!(began.1.elapsed().unwrap(), hour);
    });
    assert!((Duration::from_millis(5)..hour).contains(&outside.elapsed()));
}
