//! The machine code of `hardware.rs` on a machine without AMX: each of its instructions raises SIGILL; the handler decodes
//! it, does what the manual says on the model, and steps over it. Where there is AMX, nothing is trapped.
//!
//! ```text
//! C4  R̄X̄B̄ 00010  W v̄v̄v̄v̄ L pp  opcode  mod reg rm  [scale index base]  [displacement]
//! ```
//! Encodings: Intel's Software Developer's Manual, volume 2, "VEX prefix" and the pages of the instructions.

use std::cell::{Cell, RefCell};

use super::*;

thread_local! {
    /// What stands for the registers of this thread.
    static TILES: RefCell<Model> = const { RefCell::new(Model([[[0; SIDE]; SIDE]; 8])) };
    /// Instructions trapped.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// A register tile of C.
type Run = unsafe fn(&[f32], &[f32], &mut [f32], usize, bool);

/// Places of rax, rcx, rdx, … in a signal's context, in the order in which instructions number them.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// An instruction with a prefix of three bytes, and the registers it found.
struct Instruction<'a> {
    code: &'a [u8; 10],
    registers: &'a [i64; 23],
}

impl Instruction<'_> {
    /// Number of a general register: three bits of the instruction, and one of its prefix, which is inverted there.
    fn register(&self, low: u8, prefix_bit: u8) -> usize {
        let number = usize::from(low & 7) + 8 * usize::from(self.code[1] >> prefix_bit & 1 == 0);
        self.registers[REGISTERS[number] as usize] as usize
    }

    /// Address of the memory operand without its index, the index, and the length of the instruction.
    fn memory(&self) -> (usize, usize, usize) {
        let [modrm, sib] = [self.code[4], self.code[5]];
        let has_sib = modrm & 7 == 4;
        let base = self.register(if has_sib { sib } else { modrm }, 5);
        // Scale 1; register 4 stands for no index.
        assert!(!has_sib || sib >> 6 == 0);
        let index =
            if has_sib && (sib >> 3 & 7 != 4 || self.code[1] & 0x40 == 0) { self.register(sib >> 3, 6) } else { 0 };
        let at = 5 + usize::from(has_sib);
        let wide = || i32::from_le_bytes(*self.code[at..].first_chunk().expect("ten bytes"));
        let (displacement, bytes) = match modrm >> 6 {
            0 => (0, 0),
            1 => (i32::from(self.code[at] as i8), 1),
            _ => (wide(), 4),
        };
        (base.wrapping_add_signed(displacement as isize), index, at + bytes)
    }

    /// Does it on the tiles; its length, or `None` if it is no instruction of AMX.
    ///
    /// # Safety
    /// Memory operands can be read, or written.
    unsafe fn run(&self, tiles: &mut Model) -> Option<usize> {
        let &[0xc4, first, second, opcode, modrm, ..] = self.code else { return None };
        let (registers_only, tile, operand) = (modrm >> 6 == 3, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
        if first & 31 != 2 || second & 0x84 != 0 {
            return None;
        }
        let rows = |address: usize, stride: usize| (0..SIDE).map(move |i| (address + i * stride) as *mut [u32; SIDE]);
        match (opcode, second & 3, registers_only) {
            // ldtilecfg: sixteen rows of 64 bytes everywhere.
            (0x49, 0, false) => {
                let (address, _, length) = self.memory();
                // SAFETY: as promised.
                let config = unsafe { &*(address as *const [u8; 64]) };
                let mut expected = [0; 64];
                expected[0] = 1;
                expected[16..32].copy_from_slice(&[64, 0].repeat(8));
                expected[48..56].fill(16);
                assert_eq!(config, &expected);
                Some(length)
            }
            // tilerelease, tilezero
            (0x49, 0, true) => Some(5),
            (0x49, 3, true) => {
                tiles.0[tile] = [[0; SIDE]; SIDE];
                Some(5)
            }
            // tileloadd, tilestored
            (0x4b, 3, false) => {
                let (address, stride, length) = self.memory();
                // SAFETY: as promised.
                rows(address, stride)
                    .zip(&mut tiles.0[tile])
                    .for_each(|(from, row)| *row = unsafe { from.read_unaligned() });
                Some(length)
            }
            (0x4b, 2, false) => {
                let (address, stride, length) = self.memory();
                // SAFETY: as promised.
                rows(address, stride).zip(&tiles.0[tile]).for_each(|(to, row)| unsafe { to.write_unaligned(*row) });
                Some(length)
            }
            // tdpbf16ps: C, A, B
            (0x5c, 2, true) => {
                match (tile, operand, !(second >> 3) & 15) {
                    (0, 4, 6) => tiles.dot::<0, 4, 6>(),
                    (1, 4, 7) => tiles.dot::<1, 4, 7>(),
                    (2, 5, 6) => tiles.dot::<2, 5, 6>(),
                    (3, 5, 7) => tiles.dot::<3, 5, 7>(),
                    _ => return None,
                }
                Some(5)
            }
            _ => None,
        }
    }
}

/// Does the instruction that raised SIGILL on the model. Any other raises it again, unhandled.
extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system gives the context of the thread, whose instruction has memory after it.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let at = registers[libc::REG_RIP as usize];
        let instruction = Instruction { code: &*(at as *const [u8; 10]), registers };
        match TILES.with_borrow_mut(|tiles| instruction.run(tiles)) {
            Some(length) => {
                registers[libc::REG_RIP as usize] = at + length as i64;
                COUNT.set(COUNT.get() + 1);
            }
            None => _ = libc::signal(signal, libc::SIG_DFL),
        }
    }
}

#[test]
fn the_machine_code_does_what_the_model_does() {
    // SAFETY: plain data, and a handler that lives as long as the program.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
    }
    // Where there is AMX, it is the hardware that is tested.
    let native = state().is_ok();
    // SAFETY: the instructions are there, or else are trapped.
    let _configured = unsafe { hardware::Configured::new() };
    let (words, ldc) = (4 * SIDE, 53);
    let number = |v: &f32| (8.0 * v).round();
    // Small whole numbers, which no order of sums rounds.
    let panel = |len: usize, seed: u64| -> Vec<f32> {
        let values: Vec<f32> = random(2 * len, seed).iter().map(number).collect();
        values.as_chunks::<2>().0.iter().map(|&[even, odd]| word(even, odd)).collect()
    };
    let tile = |width: usize, terms: usize, run: Run, model: Run| {
        let (a, b) = (panel(terms * SIZE * words, 1), panel(terms * width * words, 2));
        for accumulate in [true, false] {
            let before: Vec<f32> = random(SIZE * ldc, 3).iter().map(number).collect();
            let (mut found, mut expected) = (before.clone(), before);
            // SAFETY: as above.
            unsafe {
                run(&a, &b, &mut found, ldc, accumulate);
                model(&a, &b, &mut expected, ldc, accumulate);
            }
            assert_eq!(found, expected, "{width} columns, {terms} terms, {accumulate}");
        }
    };
    tile(16, 1, hardware::run::<1, 1>, model::<1, 1>);
    tile(32, 1, hardware::run::<2, 1>, model::<2, 1>);
    tile(16, 2, hardware::run::<1, 2>, model::<1, 2>);
    tile(32, 2, hardware::run::<2, 2>, model::<2, 2>);
    // Of four tiles twice: products, loads of A and B, of C, zeros, stores.
    let products = 2 * 4 * (2 + 4 + 6 + 12);
    assert!(native || COUNT.get() > products, "{} instructions trapped", COUNT.get());
    println!("{} instructions trapped", COUNT.get());
}
