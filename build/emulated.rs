//! The kernels by the host's C++ compiler, for machines without a GPU.
//!
//! Each file and flavour is a translation unit of its own: the kernels lie in an unnamed namespace, and one function per
//! kernel, `grad_emulated__MODULE__FLAVOUR__KERNEL`, unpacks its arguments. Every load and store is instrumented
//! (`-fsanitize=thread`); the emulator itself, which answers those calls, is not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::cache::{Job, SHARED, headers, run_all};
use crate::source::{Flavour, Module};

/// Name of the function that runs a kernel on the emulator.
pub fn symbol(module: &str, flavour: Flavour, kernel: &str) -> String {
    format!("grad_emulated__{module}__{}__{kernel}", flavour.name())
}

/// Compiles and links the emulator and every kernel.
pub fn compile_all(modules: &[Module], out: &Path) -> Result<(), String> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1).debug(true).include("kernels").warnings(false).cargo_metadata(true);
    let compiler = build.try_get_compiler().map_err(|e| format!("the emulator needs a C++ compiler: {e}"))?;
    let headers = headers(&SHARED)?;
    let (mut jobs, mut objects) = (vec![], vec![]);
    let mut add = |source: &Path, text: String, flags: &[&str], name: String| {
        let output = out.join(format!("{name}.o"));
        let mut command = compiler.to_command();
        command.args(flags).arg("-c").arg(source);
        objects.push(output.clone());
        jobs.push(Job { command, depends_on: format!("{text}{headers}"), output, what: source.display().to_string() });
    };
    for path in runtime()? {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = format!("emulator_{}", path.file_stem().and_then(|s| s.to_str()).unwrap_or("part"));
        add(&path, text, &["-O2"], name);
    }
    let folder = out.ancestors().nth(4).unwrap_or(out).join("kernels");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for module in modules.iter().filter(|m| m.only.is_none()) {
        let text = std::fs::read_to_string(&module.path).map_err(|e| format!("{}: {e}", module.path.display()))?;
        for &flavour in &module.flavours {
            // Beside the cache, so that the command is the same in every profile.
            let unit = folder.join(format!("{}.{}.cpp", module.name, flavour.name()));
            let around = translation_unit(module, flavour);
            std::fs::write(&unit, &around).map_err(|e| format!("{}: {e}", unit.display()))?;
            add(&unit, around + &text, &["-fsanitize=thread,bounds"], format!("{}_{}", module.name, flavour.name()));
        }
    }
    run_all(jobs, out)?;
    objects.iter().for_each(|object| {
        build.object(object);
    });
    build.try_compile("grad_emulator").map_err(|e| format!("the emulator cannot be linked: {e}"))
}

/// The emulator's own files.
fn runtime() -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir("kernels/emulator").map_err(|e| format!("kernels/emulator: {e}"))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "cpp"));
    paths.sort();
    Ok(paths)
}

fn translation_unit(module: &Module, flavour: Flavour) -> String {
    let path = module.path.strip_prefix("kernels").unwrap_or(&module.path).display();
    let mut text = format!("#define EMULATED 1\n#define {} 1\n#include \"emulator/cuda.h\"\n", flavour.define());
    for kernel in &module.kernels {
        // A C name is one for the whole program, whatever namespace it is in; each flavour needs its own.
        let _ = writeln!(text, "#define {0} {0}__{1}", kernel.name, flavour.name());
    }
    let _ = writeln!(text, "namespace {{\n#include \"{path}\"\n}}");
    for kernel in &module.kernels {
        let (symbol, name) = (symbol(&module.name, flavour, &kernel.name), &kernel.name);
        let _ =
            writeln!(text, "extern \"C\" void {symbol}(void** arguments) {{ emulator::call(&{name}, arguments); }}");
    }
    text
}
