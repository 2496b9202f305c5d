//! The driver launcher and cuBLASLt, over libraries with their ABI that work in host memory (tests/fake_cuda): everything but
//! the GPU itself. A process loads each library once, so every case runs in a process of its own.

use crate::command::{limo_engine, succeed};
use crate::fakes::compile;
use limo_engine::bench::ceilings;
use limo_engine::bench::selftest::{self, Target};
use limo_engine::comm::Comm;
use limo_engine::comm::nccl::{self, Bootstrap};
use limo_engine::device::driver::Driver;
use limo_engine::device::gpu::{devices, visible_devices};
use limo_engine::device::images::Image;
use limo_engine::device::libraries::{CUBLASLT, NCCL};
use limo_engine::device::{Launch, Launcher, Stream, nvtx};
use limo_engine::error::{Error, Kind};
use limo_engine::ops::Gemm;
use limo_engine::ops::cuda::gemm::CublasLt;
use limo_engine::tensor::{Arena, DType, Tensor};
use limo_engine::testing::gemm;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const CHILD: &str = "LIMO_TEST_CHILD";

/// Compiles the fakes once: drivers/ (a whole one), broken/ (a driver without a function), other/ (cuBLASLt under the name
/// that the loader tries first), environment/ (a Python environment as pip lays it out). None without a C compiler.
fn fakes() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_cuda");
        let packages = "environment/lib/python3.12/site-packages/nvidia";
        let libraries = [
            ("fake_cuda/cuda.c", "drivers/libcuda.so.1", ""),
            ("fake_cuda/cuda.c", "broken/libcuda.so.1", "-DcuFuncGetParamInfo=cuFuncGetNothing"),
            ("fake_cuda/cublasLt.c", &format!("{packages}/cu13/lib/libcublasLt.so.13"), ""),
            ("fake_cuda/cublasLt.c", "other/libcublasLt.so", ""),
            ("fake_nccl/nccl.c", &format!("{packages}/nccl/lib/libnccl.so.2"), ""),
            ("fake_cuda/nvtx.c", &format!("{packages}/cu13/lib/libnvtx3interop.so.1"), ""),
        ];
        // A child must not replace files that its siblings run.
        let built = std::env::var_os(CHILD).is_some();
        for (source, library, define) in libraries.into_iter().filter(|_| !built) {
            if !compile(source, &root.join(library), define) {
                return None;
            }
        }
        Some(root)
    };
    BUILT.get_or_init(build).as_deref()
}

/// Runs `body` in a process of its own that finds the fakes, with more variables set.
fn with_fakes(test: &str, driver: &str, variables: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let Some(root) = fakes() else {
        eprintln!("skipped: 1 test, no C compiler for the fake driver");
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("gpu::{test}"), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LIMO_CUDA_LIBS", root.join(driver))
        .env("VIRTUAL_ENV", root.join("environment"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn open() -> Driver {
    #[repr(align(16))]
    struct Aligned<const N: usize>([u8; N]);
    static HOPPER: Aligned<19> = Aligned(*b"other architecture\0");
    static COMMON: Aligned<18> = Aligned(*b"scale 24\nfault 8\n\0");
    let image = |source, kernels, fatbin| Image { family: "fake", source, kernels, fatbin };
    let hopper = image("kernels/hopper.cu", &["gemm_hopper"], &HOPPER.0);
    Driver::open(0, &[hopper, image("kernels/common.cu", &["scale", "fault"], &COMMON.0)]).unwrap()
}

fn device_tensor(driver: &Driver, values: &Tensor) -> Tensor {
    let mut arena = Arena::reserve(driver.allocator(), values.bytes().next_multiple_of(1024)).unwrap();
    let mut tensor = arena.tensor("x", values.dtype(), values.shape()).unwrap();
    driver.upload(values.view().raw_bytes(), tensor.view_mut()).unwrap();
    tensor
}

fn download(driver: &Driver, x: &Tensor) -> Tensor {
    let mut bytes = vec![0u8; x.bytes()];
    driver.download(x.view(), &mut bytes).unwrap();
    let values: Vec<f32> = bytes.chunks(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
    Tensor::from_f32(&values, x.shape())
}

fn expect_error(result: Result<impl Sized, Error>, kind: Kind, words: &[&str]) {
    let error = result.err().expect("an error");
    let text = error.to_string();
    assert_eq!(error.kind, kind, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
}

#[test]
fn driver_allocates_launches_copies_and_times() {
    with_fakes("driver_allocates_launches_copies_and_times", "drivers", &[], || {
        let driver = open();
        assert_eq!(driver.info().name, "Fake GPU 0");
        assert_eq!((driver.info().capability, driver.info().multiprocessors), ((9, 0), 132));
        assert_eq!(visible_devices().unwrap(), 1);
        assert_eq!(driver.free_memory().unwrap(), Some((1 << 37) - (256 << 20)));

        let x = device_tensor(&driver, &Tensor::from_f32(&[1.0, -2.0, 3.5, 0.25, 9.0], &[5]));
        let mut arena = Arena::reserve(driver.allocator(), 2048).unwrap();
        let mut out = arena.tensor("out", DType::F32, &[5]).unwrap();
        let mut copy = arena.tensor("copy", DType::F32, &[5]).unwrap();
        assert_eq!(download(&driver, &out).view().f32(), [0.0; 5], "regions start as zeros");

        let params = |x: &Tensor, out: &mut Tensor| {
            let mut bytes = bytemuck::bytes_of(&[x.view().address(), out.view().address()]).to_vec();
            bytes.extend(5u32.to_le_bytes());
            bytes.extend(2f32.to_le_bytes());
            bytes
        };
        let launch = Launch { grid: [2, 1, 1], block: [32, 1, 1], shared_bytes: 100 << 10 };
        let start = driver.mark().unwrap();
        // SAFETY: the parameter is what the fake's kernel reads.
        unsafe { driver.launch("scale", launch, &params(&x, &mut out)).unwrap() };
        driver.copy(out.view(), copy.view_mut()).unwrap();
        let end = driver.mark().unwrap();
        assert!(end.milliseconds_since(&*start).unwrap() > 0.009);
        assert_eq!(download(&driver, &copy).view().f32(), [2.0, -4.0, 7.0, 0.5, 18.0]);

        let copies = driver.on(Stream::Copy);
        copies.wait(&*driver.mark().unwrap()).unwrap();
        copies.copy(x.view(), copy.view_mut()).unwrap();
        driver.wait(&*copies.mark().unwrap()).unwrap();
        assert_eq!(download(&driver, &copy).view().f32(), [1.0, -2.0, 3.5, 0.25, 9.0]);
        driver.fill_bytes(0xFF, out.view_mut()).unwrap();
        assert!(download(&driver, &out).view().f32().iter().all(|v| v.is_nan()));
    });
}

#[test]
fn what_was_recorded_runs_as_often_as_it_is_issued() {
    with_fakes("what_was_recorded_runs_as_often_as_it_is_issued", "drivers", &[], || {
        let driver = open();
        let mut x = device_tensor(&driver, &Tensor::from_f32(&[1.0, -2.0, 3.5], &[3]));
        let mut out = device_tensor(&driver, &Tensor::from_f32(&[0.0; 3], &[3]));
        let mut params = bytemuck::bytes_of(&[x.view().address(), out.view().address()]).to_vec();
        params.extend(3u32.to_le_bytes());
        params.extend(2f32.to_le_bytes());
        let launch = Launch { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
        let mut body = || {
            // SAFETY: the parameter is what the fake's kernel reads.
            unsafe { driver.launch("scale", launch, &params)? };
            driver.copy(out.view(), x.view_mut())
        };
        let recording = driver.record(&mut body).unwrap();
        assert_eq!(download(&driver, &out).view().f32(), [0.0; 3], "recorded, not run");
        recording.issue().unwrap();
        recording.issue().unwrap();
        assert_eq!(download(&driver, &out).view().f32(), [4.0, -8.0, 14.0]);
        // What waits cannot be recorded, and leaves the stream as it was.
        let refused = driver.record(&mut || driver.upload(&[0; 12], out.view_mut()));
        expect_error(refused.map(|_| ()), Kind::Internal, &["waiting for the GPU"]);
        recording.issue().unwrap();
        assert_eq!(download(&driver, &x).view().f32(), [8.0, -16.0, 28.0]);
    });
}

#[test]
fn ranges_nest_where_nvtx_is_installed() {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvtx.log");
    if std::env::var_os(CHILD).is_none() {
        let _ = std::fs::remove_file(&log);
    }
    with_fakes("ranges_nest_where_nvtx_is_installed", "drivers", &[("FAKE_NVTX_LOG", log.to_str().unwrap())], || {
        let step = nvtx::range("step");
        drop(nvtx::range("forward"));
        drop(step);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "push step\npush forward\npop \npop \n");
    });
}

#[test]
fn driver_errors_name_what_failed() {
    with_fakes("driver_errors_name_what_failed", "drivers", &[], || {
        let driver = open();
        let launch = |name: &str, threads: u32, shared_bytes: u32, bytes: usize| {
            let launch = Launch { grid: [3, 1, 1], block: [threads, 1, 1], shared_bytes };
            // SAFETY: the fake's kernels other than "scale" read nothing, and "scale" is given n = 0.
            unsafe { driver.launch(name, launch, &vec![0; bytes]) }
        };
        expect_error(launch("scale", 32, 0, 16), Kind::Internal, &["scale", "24 bytes", "16"]);
        expect_error(launch("gemm_hopper", 32, 0, 24), Kind::Internal, &["gemm_hopper", "Fake GPU 0", "9.0"]);
        expect_error(launch("scale", 2048, 0, 24), Kind::Internal, &["scale", "[2048, 1, 1]", "CUDA_ERROR_INVALID_VALUE"]);
        expect_error(launch("scale", 32, 1 << 20, 24), Kind::Internal, &["scale", "1.0 MiB", "227.0 KiB"]);
        expect_error(
            driver.allocator().region(1 << 41).map(|_| ()),
            Kind::DoesNotFit,
            &["2.0 TiB", "CUDA_ERROR_OUT_OF_MEMORY"],
        );
        expect_error(Driver::open(1, &[]), Kind::Usage, &["GPU 1", "1 visible"]);
        let mut host = Tensor::host(DType::F32, &[4]);
        expect_error(driver.upload(&[0; 16], host.view_mut()), Kind::Internal, &["not on the GPU"]);
        launch("fault", 32, 0, 8).unwrap();
        expect_error(driver.synchronize(), Kind::Internal, &["CUDA_ERROR_ILLEGAL_ADDRESS", "fault", "CUDA_LAUNCH_BLOCKING"]);
    });
}

#[test]
fn an_old_driver_is_a_sentence() {
    with_fakes("an_old_driver_is_a_sentence", "drivers", &[("FAKE_CUDA_VERSION", "12020")], || {
        expect_error(Driver::open(0, &[]), Kind::Usage, &["12.2", "12.8", "libcuda.so.1", "install the NVIDIA driver"]);
    });
}

#[test]
fn a_driver_without_a_function_is_a_sentence() {
    with_fakes("a_driver_without_a_function_is_a_sentence", "broken", &[], || {
        expect_error(devices(), Kind::Usage, &["no function cuFuncGetParamInfo", "broken/libcuda.so.1"]);
    });
}

#[test]
fn a_driver_without_a_gpu_is_a_sentence() {
    with_fakes("a_driver_without_a_gpu_is_a_sentence", "drivers", &[("FAKE_CUDA_INIT", "100")], || {
        expect_error(Driver::open(0, &[]), Kind::Usage, &["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]);
        assert_eq!(visible_devices().unwrap(), 0);
    });
}

#[test]
fn libraries_are_found_where_pip_puts_them() {
    with_fakes("libraries_are_found_where_pip_puts_them", "drivers", &[], || {
        let cublaslt = CUBLASLT.find().unwrap();
        assert!(cublaslt.path.ends_with("site-packages/nvidia/cu13/lib/libcublasLt.so.13"), "{:?}", cublaslt.path);
        assert_eq!(cublaslt.version.to_string(), "13.1");
        let nccl = NCCL.find().unwrap();
        assert!(nccl.path.ends_with("site-packages/nvidia/nccl/lib/libnccl.so.2"), "{:?}", nccl.path);
        assert_eq!(nccl.version.to_string(), "2.28");
    });
}

#[test]
fn threads_of_one_process_meet_through_nccl() {
    let test = "threads_of_one_process_meet_through_nccl";
    with_fakes(test, "drivers", &[("FAKE_CUDA_DEVICES", "3")], || {
        let id = Bootstrap::Id(nccl::new_id().unwrap());
        let rank = |rank: usize| {
            let driver = Driver::open(rank, &[]).unwrap();
            let comm = nccl::connect(driver.on(Stream::Copy), rank, 3, &id, Duration::from_secs(60)).unwrap();
            assert_eq!(comm.describe(), "NCCL 2.28, 3 ranks");
            let tensor = |values: &[f32]| device_tensor(&driver, &Tensor::from_f32(values, &[values.len()]));
            let (part, mut whole) = (tensor(&[rank as f32, 0.5]), tensor(&[f32::NAN; 6]));
            comm.all_gather(part.view(), whole.view_mut()).unwrap();
            let mark = driver.on(Stream::Copy).mark().unwrap();
            comm.settle(&|| mark.is_done()).unwrap();
            assert_eq!(download(&driver, &whole).view().f32(), [0.0, 0.5, 1.0, 0.5, 2.0, 0.5]);
            assert_eq!(comm.share(&vec![rank as u8; rank * 300]).unwrap()[2], vec![2; 600]);
            let host = Tensor::from_f32(&[0.0; 2], &[2]);
            expect_error(comm.all_gather(host.view(), tensor(&[0.0; 6]).view_mut()), Kind::Internal, &["from Host to Device"]);
        };
        std::thread::scope(|scope| (0..3).for_each(|r| drop(scope.spawn(move || rank(r)))));
    });
}

#[test]
fn a_library_that_the_loader_would_not_take_is_refused() {
    let Some(root) = fakes() else { return };
    let chosen = root.join("environment/lib/python3.12/site-packages/nvidia/cu13/lib");
    let [chosen, other] = [chosen, root.join("other")].map(|path| path.display().to_string());
    let variables = [("LIMO_CUDA_LIBS", chosen.as_str()), ("LD_LIBRARY_PATH", other.as_str())];
    with_fakes("a_library_that_the_loader_would_not_take_is_refused", "drivers", &variables, || {
        let words = ["the loader takes", "other/libcublasLt.so", "LD_LIBRARY_PATH"];
        expect_error(CUBLASLT.find(), Kind::Usage, &words);
    });
}

#[test]
fn an_old_cublaslt_is_a_sentence() {
    with_fakes("an_old_cublaslt_is_a_sentence", "drivers", &[("FAKE_CUBLASLT_VERSION", "110601")], || {
        expect_error(CublasLt::new(&open()).map(|_| ()), Kind::Usage, &["cuBLASLt", "11.6", "12.0", "pip install"]);
    });
}

#[test]
fn without_cublaslt_the_driver_works_and_products_are_a_sentence() {
    let test = "without_cublaslt_the_driver_works_and_products_are_a_sentence";
    with_fakes(test, "drivers", &[("VIRTUAL_ENV", "/nowhere")], || {
        if CUBLASLT.find().is_ok() {
            return eprintln!("skipped: 1 test, cuBLASLt is installed");
        }
        expect_error(CublasLt::new(&open()).map(|_| ()), Kind::Usage, &["libcublasLt.so.13", "LIMO_CUDA_LIBS", "pip install"]);
    });
}

#[test]
fn products_pass_their_case_table() {
    with_fakes("products_pass_their_case_table", "drivers", &[], || {
        let driver = open();
        let cublaslt = CublasLt::new(&driver).unwrap();
        for case in &gemm::CASES {
            gemm::check(&driver, &cublaslt, case).unwrap();
        }
        // Every descriptor once, for the run folder.
        let algorithms = cublaslt.algorithms();
        assert_eq!(algorithms.len(), gemm::CASES.len());
        assert!(algorithms.iter().all(|row| row["m"].is_u64() && row["algorithm"].as_array().unwrap().len() == 8));
        // The next process computes with what this one chose, not with its own choice.
        let other = |word: &str| {
            let mut rows = algorithms.clone();
            rows.iter_mut().for_each(|row| row["algorithm"][1] = word.into());
            let next = CublasLt::new(&driver).unwrap();
            next.use_algorithms(&rows).map(|()| (next, rows))
        };
        let (next, rows) = other("0000000000000002").unwrap();
        gemm::CASES.iter().for_each(|case| gemm::check(&driver, &next, case).unwrap());
        assert_eq!(next.algorithms(), rows);
        let (gone, _) = other("0000000000000003").unwrap();
        let error = gemm::check(&driver, &gone, &gemm::CASES[0]).unwrap_err();
        assert!(error.message.contains("that this product is to run does not run with this cuBLASLt"), "{error}");
        assert!(other("not hexadecimal").is_err());
        // A bias with an f32 result is refused before cuBLASLt sees it.
        let tensor = |dtype, shape: &[usize]| Tensor::alone(driver.allocator(), dtype, shape).unwrap();
        let [x, w, bias] = [&[24, 40][..], &[16, 40], &[16]].map(|shape| tensor(DType::Bf16, shape));
        let mut y = tensor(DType::F32, &[24, 16]);
        let refused = cublaslt.gemm(&driver, Gemm::linear(x.view(), w.view(), Some(bias.view()), y.view_mut()));
        expect_error(refused, Kind::Internal, &["bias", "bf16"]);
    });
}

/// The command line on a machine whose only GPU is the fake one. None where this binary has no fatbins to load.
fn train_on_fake(folder: &Path, free_mib: &str, more: &[&str]) -> Option<(i32, String)> {
    let root = fakes()?;
    let config = folder.join("config.toml");
    std::fs::write(folder.join("model.json"), crate::engine::MODEL).unwrap();
    let text = format!(
        "model = {{ config = \"{0}/model.json\", tokenizer = \"configs/tiny\" }}\ndata = {{ train = [\"configs/tiny/train.jsonl\"] }}\n\
         train = {{ micro_tokens = 8192, batch = 512 }}\noutput = {{ dir = \"{0}/run\" }}\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let [drivers, environment] = ["drivers", "environment"].map(|name| root.join(name).display().to_string());
    let variables = [("LIMO_CUDA_LIBS", drivers.as_str()), ("VIRTUAL_ENV", &environment), ("FAKE_CUDA_FREE_MIB", free_mib)];
    let arguments = [&["train", config.to_str().unwrap()], more].concat();
    let (code, output, error) = crate::command::limo_engine_with(&variables, &arguments);
    if error.contains("built without CUDA kernels") {
        eprintln!("skipped: 1 test, built without nvcc");
        return None;
    }
    Some((code, output + &error))
}

#[test]
fn auto_takes_a_visible_gpu_and_never_falls_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some((code, text)) = train_on_fake(folder.path(), "4096", &["--dry-run"]) else { return };
    assert!(code == 0 && text.contains("on Fake GPU 0") && text.contains("nothing is computed again"), "{code}: {text}");
    // Heads of 32.
    let small = ["-s", "model.config=configs/tiny/config.json", "--dry-run"];
    let Some((code, text)) = train_on_fake(folder.path(), "4096", &small) else { return };
    assert!(code == 2 && text.contains("heads of 64 and 128") && text.contains("--device cpu"), "{code}: {text}");
}

#[test]
fn what_a_gpu_cannot_hold_is_refused_with_what_would_fit() {
    let folder = tempfile::tempdir().unwrap();
    let device: [&str; 2] = ["--device", "cuda"];
    // Of what is free, 256 MiB are the driver's. Room for recomputation only: chosen where it may be, else proposed.
    let Some((code, text)) = train_on_fake(folder.path(), "348", &[&device[..], &["--dry-run"]].concat()) else { return };
    assert!(code == 0 && text.contains("computed again in the backward pass"), "{code}: {text}");
    let none = [&device[..], &["-s", "memory.recompute=none"]].concat();
    let Some((code, text)) = train_on_fake(folder.path(), "348", &none) else { return };
    let proposed = text.contains("memory.recompute = \"mlp\" needs");
    assert!(
        code == 4 && text.contains(", 92.0 MiB and") && text.contains("available on Fake GPU 0") && proposed,
        "{code}: {text}"
    );
    let Some((code, text)) = train_on_fake(folder.path(), "288", &device) else { return };
    assert!(code == 4 && text.contains("train.micro_tokens = "), "{code}: {text}");
    let Some((code, text)) = train_on_fake(folder.path(), "200", &device) else { return };
    assert!(code == 4 && text.contains("smaller model"), "{code}: {text}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_copy_is_timed_by_the_device_and_counted_both_ways() {
    with_fakes("a_copy_is_timed_by_the_device_and_counted_both_ways", "drivers", &[], || {
        let speed = ceilings::copy(&open(), 16 << 20).unwrap().speed.unwrap();
        assert!((speed.gigabytes_per_s / 4000.0 - 1.0).abs() < 0.02, "the fake moves 2 TB/s each way: {speed:?}");
        assert!(speed.launches > 1000 && speed.spread[0] <= speed.milliseconds && speed.milliseconds <= speed.spread[1]);
    });
}

#[test]
fn case_tables_pass_on_a_gpu() {
    if visible_devices().unwrap() > 0 {
        succeed(limo_engine(&["selftest", "--device", "cuda"]));
        return;
    }
    let skipped = selftest::run(Target::Absent("no GPU is visible"), &[]).unwrap().len();
    eprintln!("skipped: {skipped} cases, no GPU is visible");
    assert!(std::env::var_os("LIMO_REQUIRE_GPU").is_none_or(|value| value != "1"), "LIMO_REQUIRE_GPU=1 asks for a GPU");
}
