//! Seccomp filters: which system calls they allow, computed from their instructions.
//!
//! A filter is a program of classic BPF over struct seccomp_data: seccomp(2), kernel/seccomp.c
//! (seccomp_check_filter has the instructions that the kernel accepts).

use nix::libc::{
    self, BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE,
    BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC,
    BPF_MUL, BPF_NEG, BPF_OR, BPF_RET, BPF_RSH, BPF_ST, BPF_STX, BPF_SUB, BPF_TAX, BPF_TXA, BPF_W,
    BPF_X, BPF_XOR,
};

/// An instruction: struct sock_filter of linux/filter.h.
pub type Instruction = libc::sock_filter;

/// A system call as a filter sees it: struct seccomp_data of linux/seccomp.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallData {
    /// The number of the system call.
    pub number: i32,
    /// The calling convention: AUDIT_ARCH_* of linux/audit.h.
    pub arch: u32,
    /// The address of the instruction after the one that makes the call.
    pub ip: u64,
    /// The arguments.
    pub args: [u64; 6],
}

/// The size of struct seccomp_data in bytes, which BPF_LEN loads.
const DATA_SIZE: u32 = 64;
/// The number of words that a program can store: BPF_MEMWORDS.
const MEMORY_WORDS: usize = 16;

impl CallData {
    /// The word at this offset in bytes. None if the offset is not aligned, or is too large.
    fn word(&self, offset: u32) -> Option<u32> {
        if offset % 4 != 0 || offset >= DATA_SIZE {
            return None;
        }
        let half = |value: u64, offset: u32| {
            let low = (offset % 8 == 0) == cfg!(target_endian = "little");
            if low { value as u32 } else { (value >> 32) as u32 }
        };
        Some(match offset {
            0 => self.number as u32,
            4 => self.arch,
            8 | 12 => half(self.ip, offset),
            _ => half(self.args[(offset as usize - 16) / 8], offset),
        })
    }
}

/// Says whether a task under all of these filters can make a system call: every one of them gives
/// SECCOMP_RET_ALLOW or SECCOMP_RET_LOG, since the most restrictive action of all is taken.
pub fn allows<'a>(filters: impl IntoIterator<Item = &'a [Instruction]>, call: &CallData) -> bool {
    let allowed = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_LOG];
    filters.into_iter().all(|filter| {
        let value = value(filter, call);
        value.is_some_and(|it| allowed.contains(&(it & libc::SECCOMP_RET_ACTION_FULL)))
    })
}

/// The value that a filter returns for a system call. None if the program comes to an instruction
/// that the kernel does not accept.
pub fn value(filter: &[Instruction], call: &CallData) -> Option<u32> {
    let (mut a, mut x) = (0_u32, 0_u32);
    let mut memory = [0_u32; MEMORY_WORDS];
    let mut at = 0_usize;
    // Jumps lead forward only, so that the loop ends.
    loop {
        let Instruction { code, jt, jf, k } = *filter.get(at)?;
        at += 1;
        let code = u32::from(code);
        let operand = if code & BPF_X == BPF_X { x } else { k };
        match code & 0x07 {
            BPF_LD | BPF_LDX => {
                let loaded = match code & !0x07 {
                    mode if mode == BPF_W | BPF_ABS && code & 0x07 == BPF_LD => call.word(k)?,
                    mode if mode == BPF_W | BPF_LEN => DATA_SIZE,
                    BPF_IMM => k,
                    BPF_MEM => *memory.get(k as usize)?,
                    _ => return None,
                };
                match code & 0x07 == BPF_LD {
                    true => a = loaded,
                    false => x = loaded,
                }
            }
            BPF_ST if code == BPF_ST => *memory.get_mut(k as usize)? = a,
            BPF_STX if code == BPF_STX => *memory.get_mut(k as usize)? = x,
            BPF_ALU => {
                a = match code & 0xf0 {
                    BPF_ADD => a.wrapping_add(operand),
                    BPF_SUB => a.wrapping_sub(operand),
                    BPF_MUL => a.wrapping_mul(operand),
                    BPF_DIV => match a.checked_div(operand) {
                        Some(quotient) => quotient,
                        // The program ends with zero: SECCOMP_RET_KILL_THREAD.
                        None => return Some(0),
                    },
                    BPF_AND => a & operand,
                    BPF_OR => a | operand,
                    BPF_XOR => a ^ operand,
                    // The kernel uses the lower five bits of X.
                    BPF_LSH => a.wrapping_shl(operand),
                    BPF_RSH => a.wrapping_shr(operand),
                    BPF_NEG => a.wrapping_neg(),
                    _ => return None,
                }
            }
            BPF_JMP => {
                let holds = match code & 0xf0 {
                    BPF_JA => {
                        at = at.checked_add(k as usize)?;
                        continue;
                    }
                    BPF_JEQ => a == operand,
                    BPF_JGT => a > operand,
                    BPF_JGE => a >= operand,
                    BPF_JSET => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            BPF_RET => {
                return match code & 0x18 {
                    BPF_K => Some(k),
                    BPF_A => Some(a),
                    _ => None,
                };
            }
            BPF_MISC => match code & 0xf8 {
                BPF_TAX => x = a,
                BPF_TXA => a = x,
                _ => return None,
            },
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seccomp::{Probe, probe};
    use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_DATA, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS};
    use proptest::prelude::*;

    fn op(code: u32, k: u32) -> Instruction {
        jump(code, k, 0, 0)
    }

    fn jump(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
        Instruction { code: code as u16, jt, jf, k }
    }

    /// Loads the word at an offset of the data.
    fn load(offset: u32) -> Instruction {
        op(BPF_LD | BPF_W | BPF_ABS, offset)
    }

    const CALL: CallData = CallData {
        number: 219,
        arch: 0xc000_003e,
        ip: 0x1122_3344_5566_7788,
        args: [1, 2, 3, 4, 5, 0xaabb_ccdd_eeff_0011],
    };

    fn gives(program: &[Instruction]) -> Option<u32> {
        value(program, &CALL)
    }

    #[test]
    fn every_word_of_a_call_can_be_loaded() {
        let word = |offset| gives(&[load(offset), op(BPF_RET | BPF_A, 0)]);
        assert_eq!((word(0), word(4)), (Some(219), Some(0xc000_003e)));
        let (low, high) = if cfg!(target_endian = "little") { (0, 4) } else { (4, 0) };
        assert_eq!((word(8 + low), word(8 + high)), (Some(0x5566_7788), Some(0x1122_3344)));
        assert_eq!((word(16 + low), word(16 + high)), (Some(1), Some(0)));
        assert_eq!((word(56 + low), word(56 + high)), (Some(0xeeff_0011), Some(0xaabb_ccdd)));
        assert_eq!((word(64), word(2), word(u32::MAX)), (None, None, None));
    }

    #[test]
    fn a_filter_with_a_list_of_calls_allows_these_alone() {
        let list = |numbers: &[u32]| {
            let mut program = vec![load(0)];
            for &number in numbers {
                program.push(jump(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
                program.push(op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
            }
            program.push(op(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
            program
        };
        let (with, without) = (list(&[35, 219]), list(&[35, 230]));
        assert!(allows([&with[..]], &CALL) && !allows([&without[..]], &CALL));
        // The most restrictive action is taken, whichever filter it comes from.
        assert!(!allows([&with[..], &without], &CALL) && !allows([&without[..], &with], &CALL));
        assert!(allows([&with[..], &with], &CALL) && allows([], &CALL));
    }

    #[test]
    fn every_action_but_allow_and_log_denies() {
        let returns = |value| [op(BPF_RET | BPF_K, value)];
        for (value, allowed) in [
            (SECCOMP_RET_ALLOW, true),
            (SECCOMP_RET_ALLOW | 7, true),
            (libc::SECCOMP_RET_LOG, true),
            (SECCOMP_RET_ERRNO, false),
            (libc::SECCOMP_RET_TRACE, false),
            (libc::SECCOMP_RET_USER_NOTIF, false),
            (libc::SECCOMP_RET_TRAP, false),
            (SECCOMP_RET_KILL_PROCESS, false),
            (libc::SECCOMP_RET_KILL_THREAD, false),
            (SECCOMP_RET_ALLOW | SECCOMP_RET_DATA, true),
            (0x1234_0000, false),
        ] {
            assert_eq!(allows([&returns(value)[..]], &CALL), allowed, "{value:#x}");
        }
    }

    #[test]
    fn a_division_by_zero_ends_the_program_with_zero() {
        let by_x = [op(BPF_LD | BPF_IMM, 6), op(BPF_ALU | BPF_DIV | BPF_X, 0)];
        let rest = [op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)];
        assert_eq!(gives(&[&by_x[..], &rest].concat()), Some(0));
    }

    #[test]
    fn a_program_that_the_kernel_refuses_has_no_value() {
        for program in [
            vec![],
            vec![op(BPF_LD | BPF_IMM, 1)],
            vec![op(BPF_JMP | BPF_JA, 1), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_JMP | BPF_JA, u32::MAX), op(BPF_RET | BPF_K, 0)],
            vec![jump(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 9), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_ST, 16), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_LD | BPF_MEM, 16), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_LD | libc::BPF_B | BPF_ABS, 0), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_LD | BPF_W | libc::BPF_IND, 0), op(BPF_RET | BPF_K, 0)],
            vec![op(BPF_RET | BPF_X, 0)],
        ] {
            assert_eq!(gives(&program), None, "{program:?}");
        }
    }

    /// An instruction that the kernel accepts anywhere. It stores to the memory before the program
    /// reads from there: see [`program`].
    fn instruction() -> impl Strategy<Value = Instruction> {
        let codes = [BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND, BPF_OR, BPF_XOR];
        let jumps = [BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET];
        let source = || prop::sample::select(vec![BPF_K, BPF_X]);
        let constant = || prop_oneof![Just(0_u32), 0_u32..9, any::<u32>()];
        let slot = || 0_u32..2;
        prop_oneof![
            (prop::sample::select(codes.to_vec()), source(), constant()).prop_map(
                |(code, source, k)| {
                    // The kernel refuses to divide by the constant zero.
                    let k = if code == BPF_DIV && k == 0 { 3 } else { k };
                    op(BPF_ALU | code | source, k)
                }
            ),
            (prop::sample::select(vec![BPF_LSH, BPF_RSH]), source(), 0_u32..32)
                .prop_map(|(code, source, k)| op(BPF_ALU | code | source, k)),
            Just(op(BPF_ALU | BPF_NEG, 0)),
            (0_u32..16).prop_map(|word| load(4 * word)),
            Just(op(BPF_LD | BPF_W | BPF_LEN, 0)),
            Just(op(BPF_LDX | BPF_W | BPF_LEN, 0)),
            constant().prop_map(|k| op(BPF_LD | BPF_IMM, k)),
            constant().prop_map(|k| op(BPF_LDX | BPF_IMM, k)),
            slot().prop_map(|k| op(BPF_LD | BPF_MEM, k)),
            slot().prop_map(|k| op(BPF_LDX | BPF_MEM, k)),
            slot().prop_map(|k| op(BPF_ST, k)),
            slot().prop_map(|k| op(BPF_STX, k)),
            Just(op(BPF_MISC | BPF_TAX, 0)),
            Just(op(BPF_MISC | BPF_TXA, 0)),
            (prop::sample::select(jumps.to_vec()), source(), constant(), 0_u8..5, 0_u8..5)
                .prop_map(|(code, source, k, jt, jf)| jump(BPF_JMP | code | source, k, jt, jf)),
            (0_u32..4).prop_map(|k| op(BPF_JMP | BPF_JA, k)),
        ]
    }

    /// A program that makes the probe call fail with an errno of nine bits that it computes, and
    /// allows every other call.
    fn program(body: &[Instruction]) -> Vec<Instruction> {
        let mut program = vec![
            load(0),
            jump(BPF_JMP | BPF_JEQ | BPF_K, Probe::NUMBER as u32, 1, 0),
            op(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            op(BPF_ST, 0),
            op(BPF_ST, 1),
        ];
        program.extend(body);
        // The longest jump out of the body ends among these.
        program.extend([op(BPF_MISC | BPF_TAX, 0); 5]);
        // Its 32 bits are folded to nine.
        for shift in [18, 9] {
            program.extend([
                op(BPF_MISC | BPF_TAX, 0),
                op(BPF_ALU | BPF_RSH | BPF_K, shift),
                op(BPF_ALU | BPF_XOR | BPF_X, 0),
            ]);
        }
        program.push(op(BPF_ALU | BPF_AND | BPF_K, 0x1ff));
        program.push(op(BPF_ALU | BPF_OR | BPF_K, SECCOMP_RET_ERRNO));
        program.push(op(BPF_RET | BPF_A, 0));
        program
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_kernel_computes_the_same(
            body in prop::collection::vec(instruction(), 0..40),
            args in any::<[u64; 6]>(),
        ) {
            let program = program(&body);
            let Some(found) = probe(&program, args) else {
                eprintln!("SKIP: this kernel has no seccomp filters");
                return Ok(());
            };
            let call = CallData { number: Probe::NUMBER, arch: found.arch, ip: found.ip, args };
            let expected = match value(&program, &call) {
                // A program that ends with zero kills.
                Some(0) => None,
                value => value.map(|value| (value & SECCOMP_RET_DATA) as i32),
            };
            prop_assert_eq!(found.errno, expected);
        }
    }
}
