//! Finding nvcc, and compiling the kernels with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Job, SHARED, headers, run_all};
use crate::source::{Flavour, Module};

/// Real architectures, where the compiler knows them: A100, RTX 30, RTX 40, H100, B200. PTX of the first serves the rest.
const ARCHITECTURES: [u32; 5] = [80, 86, 89, 90, 100];

/// Where to look, in order.
const VARIABLES: [&str; 5] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "GRAD_CUDA_PYTHON", "GRAD_CUDA_ARCH"];

/// A compiled kernel file.
pub struct Image {
    pub module: String,
    pub flavour: Flavour,
    pub path: PathBuf,
}

/// Fatbins of all modules; none, and a warning, where there is no nvcc.
pub fn compile_all(modules: &[Module], out: &Path) -> Result<Vec<Image>, String> {
    for variable in VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let Some((nvcc, version)) = find() else {
        println!(
            "cargo:warning=no nvcc found: this build runs on the CPU only. Set NVCC, CUDA_HOME or GRAD_CUDA_PYTHON to \
             embed the CUDA kernels"
        );
        tell("");
        return Ok(vec![]);
    };
    let architectures = architectures(&nvcc)?;
    let floor = architectures.first().ok_or("this nvcc knows no architecture that the kernels can be compiled for")?;
    let all: Vec<String> = architectures.iter().map(|arch| format!("sm_{arch}")).collect();
    tell(&format!("{}, PTX of sm_{floor}", all.join(" ")));
    let (mut images, mut jobs) = (vec![], vec![]);
    let (shared, hopper) = (headers(&SHARED)?, headers(&["kernels", "kernels/hopper"])?);
    for module in modules {
        if module.only.is_some_and(|only| !architectures.contains(&only.number)) {
            continue;
        }
        let headers = if module.only.is_some() { &hopper } else { &shared };
        let text = std::fs::read_to_string(&module.path).map_err(|e| format!("{}: {e}", module.path.display()))?;
        for &flavour in &module.flavours {
            let path = out.join(format!("{}.{}.fatbin", module.name, flavour.name()));
            let mut command = Command::new(&nvcc);
            command.args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Ikernels", "-D", flavour.define()]);
            // A quarter of the size: line tables repeat themselves.
            command.arg("-Xfatbin=-compress-all");
            match module.only {
                Some(only) => {
                    command.arg(format!("-gencode=arch=compute_{0},code=sm_{0}", only.name));
                }
                None => {
                    for (i, arch) in architectures.iter().enumerate() {
                        let floor = if i == 0 { format!(",compute_{arch}") } else { String::new() };
                        command.arg(format!("-gencode=arch=compute_{arch},code=[sm_{arch}{floor}]"));
                    }
                }
            }
            command.arg(&module.path);
            jobs.push(Job {
                command,
                depends_on: format!("{version}{text}{headers}"),
                output: path.clone(),
                what: format!("{} ({})", module.path.display(), flavour.name()),
            });
            images.push(Image { module: module.name.clone(), flavour, path });
        }
    }
    run_all(jobs, out)?;
    Ok(images)
}

/// Tells the program what its kernels are compiled for.
fn tell(architectures: &str) {
    println!("cargo:rustc-env=GRAD_CUDA_ARCHITECTURES={architectures}");
}

/// An nvcc that runs, and what it says of itself.
fn find() -> Option<(PathBuf, String)> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let named = variable("NVCC").into_iter();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin/nvcc"));
    let usual = ["nvcc", "/usr/local/cuda/bin/nvcc"].into_iter().map(PathBuf::from);
    let python = variable("GRAD_CUDA_PYTHON").into_iter().flat_map(|env| of_python(&env));
    named.chain(homes).chain(usual).chain(python).find_map(|nvcc| {
        let said = Command::new(&nvcc).arg("--version").output().ok()?;
        said.status.success().then(|| (nvcc, String::from_utf8_lossy(&said.stdout).into_owned()))
    })
}

/// nvcc as the packages `nvidia-cuda-nvcc` and its companions lay it into a Python environment.
fn of_python(environment: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    versions.map(|v| v.path().join("site-packages/nvidia/cu13/bin/nvcc")).collect()
}

/// What to compile for: `GRAD_CUDA_ARCH=80,90`, or all that the compiler knows.
fn architectures(nvcc: &Path) -> Result<Vec<u32>, String> {
    if let Ok(list) = std::env::var("GRAD_CUDA_ARCH") {
        let parse = |a: &str| a.trim().parse().map_err(|_| format!("GRAD_CUDA_ARCH={list}: use numbers such as 80,90"));
        return list.split(',').map(parse).collect();
    }
    let said = Command::new(nvcc).arg("--list-gpu-arch").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let known = String::from_utf8_lossy(&said.stdout).into_owned();
    let known: Vec<&str> = known.lines().map(str::trim).collect();
    Ok(ARCHITECTURES.into_iter().filter(|a| known.contains(&&*format!("compute_{a}"))).collect())
}
