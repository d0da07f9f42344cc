//! The instructions themselves, and the right to use them.

use std::arch::asm;
use std::marker::PhantomData;

use super::{SIDE, Tiles, multiply};

/// The registers of this thread, for as long as they are configured: eight tiles of 16 rows of 64 bytes.
pub struct Configured(PhantomData<*const ()>);

impl Configured {
    /// `ldtilecfg`.
    ///
    /// # Safety
    /// [`request`] said that the instructions are there.
    pub unsafe fn new() -> Self {
        // Palette 1; from byte 16 on bytes of a row, 16 bits each; from byte 48 on rows.
        let mut config = [0u8; 64];
        config[0] = 1;
        for tile in 0..8 {
            config[16 + 2 * tile] = 64;
            config[48 + tile] = 16;
        }
        // SAFETY: the instruction exists, and reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly)) };
        Configured(PhantomData)
    }
}

impl Drop for Configured {
    /// `tilerelease`: the system need not save the registers any more.
    fn drop(&mut self) {
        // SAFETY: the instruction exists where a value of this type does.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// A register tile of C.
///
/// # Safety
/// A [`Configured`] lives on this thread.
pub unsafe fn run<const V: usize, const TERMS: usize>(
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    multiply::<V, TERMS>(&mut Registers(PhantomData), a, b, c, ldc, accumulate);
}

/// The registers of this thread. Made in [`run`] alone, where they are configured.
struct Registers(PhantomData<*const ()>);

/// One instruction on tile `T` for each tile.
macro_rules! of_tile {
    ($tile:expr, $name:literal, $rest:literal, $($operands:tt)*) => {
        // SAFETY: `Registers` exist only where the instructions do; what is read or written is checked by the caller.
        unsafe {
            match $tile {
                0 => asm!(concat!($name, " tmm0", $rest), $($operands)*),
                1 => asm!(concat!($name, " tmm1", $rest), $($operands)*),
                2 => asm!(concat!($name, " tmm2", $rest), $($operands)*),
                3 => asm!(concat!($name, " tmm3", $rest), $($operands)*),
                4 => asm!(concat!($name, " tmm4", $rest), $($operands)*),
                5 => asm!(concat!($name, " tmm5", $rest), $($operands)*),
                6 => asm!(concat!($name, " tmm6", $rest), $($operands)*),
                7 => asm!(concat!($name, " tmm7", $rest), $($operands)*),
                _ => unreachable!("there are eight tiles"),
            }
        }
    };
}

/// Whether a slice holds 16 rows of 16 words.
#[inline(always)]
fn check(len: usize, stride: usize) {
    assert!(stride >= SIDE && len >= (SIDE - 1) * stride + SIDE, "amx: a tile reaches past the end");
}

impl Tiles for Registers {
    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        of_tile!(T, "tilezero", "", options(nomem, nostack, preserves_flags));
    }

    #[inline(always)]
    fn load<const T: usize>(&mut self, from: &[f32], stride: usize) {
        check(from.len(), stride);
        of_tile!(
            T, "tileloadd", ", [{from} + 1*{stride}]",
            from = in(reg) from.as_ptr(), stride = in(reg) 4 * stride,
            options(nostack, preserves_flags, readonly)
        );
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: as above; registers alone.
        unsafe {
            match (C, A, B) {
                (0, 4, 6) => asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nomem, nostack, preserves_flags)),
                (1, 4, 7) => asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nomem, nostack, preserves_flags)),
                (2, 5, 6) => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nomem, nostack, preserves_flags)),
                (3, 5, 7) => asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nomem, nostack, preserves_flags)),
                _ => unreachable!("no such product is taken"),
            }
        }
    }

    #[inline(always)]
    fn store<const T: usize>(&mut self, to: &mut [f32], stride: usize) {
        check(to.len(), stride);
        macro_rules! store {
            ($name:literal) => {
                // SAFETY: as above; `check` saw that all 16 rows lie in `to`.
                unsafe {
                    asm!(concat!("tilestored [{to} + 1*{stride}], ", $name),
                        to = in(reg) to.as_mut_ptr(), stride = in(reg) 4 * stride, options(nostack, preserves_flags))
                }
            };
        }
        match T {
            0 => store!("tmm0"),
            1 => store!("tmm1"),
            2 => store!("tmm2"),
            3 => store!("tmm3"),
            _ => unreachable!("only sums are stored"),
        }
    }
}

/// Whether the processor has tiles, their bf16 product and the usual sizes, and the system lets this process use them;
/// or why not. To be called before threads that use them are started: they inherit the right.
#[allow(unused_unsafe)] // CPUID was unsafe in earlier versions of Rust
pub fn request() -> Result<(), &'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    // SAFETY: every x86-64 processor has CPUID.
    let [max, features, extended] = unsafe { [__cpuid(0).eax, __cpuid(1).ecx, __cpuid_count(7, 0).edx] };
    if max < 0x1d || extended & (BF16 | TILE) != BF16 | TILE {
        return Err("the processor does not have it");
    }
    // SAFETY: as above. Leaf 0x1d, 1: bytes of all tiles and of one; bytes of a row, tiles; rows.
    let palette = unsafe { __cpuid_count(0x1d, 1) };
    if [palette.eax >> 16, palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff] != [1024, 64, 8, 16] {
        return Err("its tiles have another size");
    }
    if features & OSXSAVE == 0 || enabled_state() & 0x6_0000 != 0x6_0000 {
        return Err("the operating system does not save its registers");
    }
    permitted()
}

/// XCR0: the registers that the operating system saves; bits 17 and 18 are the tiles and their configuration.
fn enabled_state() -> u32 {
    let state: u32;
    // SAFETY: the caller saw that the system enabled the instruction.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nomem, nostack, preserves_flags)) };
    state
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: Linux gives each process the registers only when it asks.
fn permitted() -> Result<(), &'static str> {
    #[cfg(target_os = "linux")]
    {
        let (number, request, feature) = (158u64, 0x1023u64, 18u64);
        let result: i64;
        // SAFETY: a system call that changes no memory of this process; it overwrites rcx and r11.
        unsafe {
            asm!("syscall", inlateout("rax") number as i64 => result, in("rdi") request, in("rsi") feature,
                out("rcx") _, out("r11") _, options(nostack))
        };
        if result == 0 { Ok(()) } else { Err("the operating system refuses it") }
    }
    #[cfg(not(target_os = "linux"))]
    Err("it is used on Linux alone")
}
