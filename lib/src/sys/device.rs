//! Device numbers. The kernel packs a major and a minor number in three ways; here each is taken apart
//! into `(major, minor)`.

use nix::libc;
use nix::sys::stat::{major, minor};

/// The numbers of a dev_t, as st_dev and st_rdev of stat(2) are: makedev(3).
pub fn from_stat(device: libc::dev_t) -> (u32, u32) {
    (major(device) as u32, minor(device) as u32)
}

/// The numbers of a device as TIOCGDEV and field 7 of /proc/PID/stat have it: the minor in bits 31-20
/// and 7-0, the major in 15-8 (proc_pid_stat(5); new_encode_dev of the kernel).
pub fn numbers(device: u32) -> (u32, u32) {
    (device >> 8 & 0xfff, device >> 12 & 0xf_ff00 | device & 0xff)
}

/// The reverse of [`numbers`].
pub fn encoded((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The numbers of a device as `sdev:` of /proc/PID/fdinfo has it: the major in the upper 12 bits, the
/// minor in the lower 20 (MKDEV of the kernel).
pub fn from_sdev(device: u32) -> (u32, u32) {
    (device >> 20, device & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_put_together_as_it_is_taken_apart() {
        for device in [(136, 0), (136, 255), (136, 70000), (4, 64), (204, 191)] {
            assert_eq!(numbers(encoded(device)), device);
        }
        assert_eq!(encoded((136, 5)), 34821);
    }

    #[test]
    fn each_packing_of_the_kernel_is_taken_apart() {
        assert_eq!(from_stat(nix::sys::stat::makedev(259, 70000)), (259, 70000));
        assert_eq!(from_sdev(0x0080_0001), (8, 1));
        assert_eq!(from_sdev(u32::MAX), (4095, 0xf_ffff));
    }
}
