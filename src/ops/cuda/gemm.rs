//! Matrix products through cuBLASLt: bf16 in, f32 accumulation, bf16 or f32 out, a bias in the epilogue. The algorithm is
//! chosen once per descriptor, never splits K (whose partial sums would come in no fixed order), and works in an explicit
//! workspace, so that a product gives the same bits every time.

use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::device::libraries::CUBLASLT;
use crate::error::{Error, Result};
use crate::ops::{Gemm, GemmDesc};
use crate::tensor::{Arena, DType, Tensor};
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::rc::Rc;

/// What NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Every operand starts at a multiple of this many bytes. Promised to the heuristic instead of its default of 256, since
/// rows of a tensor are operands too; 16 is what its fast kernels need.
const ALIGNMENT: u64 = 16;

/// One stored matrix as a column-major library reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    rows: usize,
    columns: usize,
    /// Elements from one column to the next.
    leading: usize,
    transposed: bool,
}

/// c = a·b, row-major, as the column-major product cᵀ = bᵀ·aᵀ: the bytes of a row-major [R, C] matrix are those of a
/// column-major C × R matrix, so the factors swap places, keep their transposition flags, and nothing is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ColumnMajor {
    /// The bytes of `b`.
    first: Layout,
    /// The bytes of `a`.
    second: Layout,
    /// The bytes of `c`: N × M, so the bias, one value a row here, has length N.
    out: Layout,
}

fn column_major(desc: &GemmDesc) -> ColumnMajor {
    let stored = |rows: usize, columns: usize, transposed: bool| {
        let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
        Layout { rows: inner, columns: outer, leading: inner, transposed }
    };
    let GemmDesc { m, n, k, .. } = *desc;
    ColumnMajor { first: stored(k, n, desc.b_transposed), second: stored(m, k, desc.a_transposed), out: stored(m, n, false) }
}

/// cuBLASLt on one GPU's stream.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    plans: RefCell<HashMap<GemmDesc, Rc<Plan>>>,
    /// What an earlier process chose.
    recorded: RefCell<HashMap<String, [u64; 8]>>,
    workspace: Tensor,
}

// SAFETY: handle and descriptors may move between threads; the Rc's in `plans` never leave this value.
unsafe impl Send for CublasLt {}

impl CublasLt {
    /// Opens cuBLASLt for `driver`, or says in a usage error that it is missing, where it was looked for and what to install.
    pub fn new(driver: &Driver) -> Result<Self> {
        CUBLASLT.find()?;
        driver.stream()?;
        let mut arena = Arena::reserve(driver.allocator(), WORKSPACE_BYTES)?;
        let workspace = arena.tensor("cublaslt.workspace", DType::U8, &[WORKSPACE_BYTES])?;
        let handle = lt::create_handle().map_err(|e| failed("opening cuBLASLt", e))?;
        Ok(CublasLt { handle, plans: RefCell::default(), recorded: RefCell::default(), workspace })
    }

    /// Issues the product on `driver`'s stream.
    pub fn gemm(&self, driver: &Driver, op: Gemm) -> Result<()> {
        op.check()?;
        let desc = op.desc();
        let addresses = [op.a.view.address(), op.b.view.address(), op.c.address()];
        if addresses.iter().any(|address| address % ALIGNMENT != 0) {
            return Err(Error::internal(format!("an operand of {desc:?} does not start at a multiple of {ALIGNMENT} bytes")));
        }
        let stream = driver.stream()?;
        let plan = self.plan(&desc)?;
        let pointer = |address: u64| address as *mut c_void;
        let [a, b, c] = addresses.map(pointer);
        let (one, beta) = (1f32, if op.accumulate { 1f32 } else { 0f32 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: `check` ties the operands' shapes and types to `desc`, from which the plan's layouts were made; addresses
        // are device memory that the views borrow; the scalars are read before the call returns (host pointer mode).
        unsafe {
            if let Some(bias) = &op.bias {
                let address = bias.address();
                plan.product.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?;
            }
            lt::matmul(
                self.handle,
                plan.product.0,
                scalar(&one),
                scalar(&beta),
                b,
                plan.first.0,
                a,
                plan.second.0,
                c,
                plan.out.0,
                c,
                plan.out.0,
                &plan.algorithm,
                pointer(self.workspace.view().address()),
                WORKSPACE_BYTES,
                stream as sys::cudaStream_t,
            )
        }
        .map_err(|e| failed(&format!("the product {desc:?}"), e))
    }

    /// The algorithm of every product so far: its descriptor, and the words that are the library's own.
    pub fn algorithms(&self) -> Vec<serde_json::Value> {
        let plans = self.plans.borrow();
        let mut plans: Vec<_> = plans.iter().collect();
        plans.sort_by_key(|(d, _)| (d.m, d.n, d.k, d.a_transposed, d.b_transposed, d.bias, d.accumulate, d.output.size()));
        let row = |(desc, plan): (&GemmDesc, &Rc<Plan>)| {
            let mut row = described(desc);
            row[ALGORITHM] = serde_json::json!(plan.algorithm.data.map(|word| format!("{word:016x}")));
            row
        };
        plans.into_iter().map(row).collect()
    }

    /// Takes the algorithms of an earlier process, rows of [`CublasLt::algorithms`], for the products that come.
    ///
    /// Errors: data, where a row is not such a row.
    pub fn use_algorithms(&self, rows: &[serde_json::Value]) -> Result<()> {
        for row in rows {
            let words = || -> Option<[u64; 8]> {
                let words = row.get(ALGORITHM)?.as_array()?.iter().map(|w| u64::from_str_radix(w.as_str()?, 16).ok());
                words.collect::<Option<Vec<_>>>()?.try_into().ok()
            };
            let words = words().ok_or_else(|| Error::data(format!("no algorithm of a product: {row}")))?;
            let mut product = row.clone();
            product.as_object_mut().map(|product| product.remove(ALGORITHM));
            self.recorded.borrow_mut().insert(product.to_string(), words);
        }
        Ok(())
    }

    fn plan(&self, desc: &GemmDesc) -> Result<Rc<Plan>> {
        if let Some(plan) = self.plans.borrow().get(desc) {
            return Ok(plan.clone());
        }
        let recorded = self.recorded.borrow().get(&described(desc).to_string()).copied();
        let alike = match desc.algorithm_rows {
            Some(rows) if recorded.is_none() => {
                Some(self.plan(&GemmDesc { m: rows, algorithm_rows: None, ..*desc })?.algorithm.data)
            }
            _ => None,
        };
        let plan = Plan::new(self.handle, desc, recorded.or(alike)).map_err(|e| e.context(format!("the product {desc:?}")))?;
        let plan = Rc::new(plan);
        self.plans.borrow_mut().insert(*desc, plan.clone());
        Ok(plan)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; plans do not refer to the handle.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Descriptors and the algorithm for every product of one [`GemmDesc`].
struct Plan {
    product: Product,
    first: MatrixLayout,
    second: MatrixLayout,
    out: MatrixLayout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Key of the algorithm in a row about a product.
const ALGORITHM: &str = "algorithm";

/// A product, for people and for the next process.
fn described(desc: &GemmDesc) -> serde_json::Value {
    let GemmDesc { m, n, k, a_transposed, b_transposed, bias, accumulate, input, output, algorithm_rows } = *desc;
    let mut row = serde_json::json!({
        "m": m, "n": n, "k": k, "a_transposed": a_transposed, "b_transposed": b_transposed, "bias": bias,
        "accumulate": accumulate, "input": input.to_string(), "output": output.to_string(),
    });
    if let Some(rows) = algorithm_rows {
        row["algorithm_rows"] = rows.into();
    }
    row
}

impl Plan {
    /// With the given algorithm, else one that the heuristic chooses.
    fn new(handle: sys::cublasLtHandle_t, desc: &GemmDesc, recorded: Option<[u64; 8]>) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let input = data_type(desc.input).filter(|_| desc.input == DType::Bf16);
        let (Some(input), Some(output)) = (input, data_type(desc.output)) else {
            return Err(Error::internal("products on a GPU take bf16 and give bf16 or f32"));
        };
        if desc.bias && desc.output != desc.input {
            return Err(Error::internal("cuBLASLt adds a bf16 bias to a bf16 result only"));
        }
        let map = column_major(desc);
        let product = Product::new()?;
        // cublasOperation_t: CUBLAS_OP_N = 0, CUBLAS_OP_T = 1.
        let operation = |layout: &Layout| i32::from(layout.transposed);
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(&map.first))?;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(&map.second))?;
        if desc.bias {
            product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        let first = MatrixLayout::new(input, &map.first)?;
        let second = MatrixLayout::new(input, &map.second)?;
        let out = MatrixLayout::new(output, &map.out)?;
        let layouts = [&first, &second, &out];
        let algorithm = match recorded {
            Some(data) => checked(handle, &product, layouts, sys::cublasLtMatmulAlgo_t { data })?,
            None => algorithm(handle, &product, layouts)?,
        };
        Ok(Plan { product, first, second, out, algorithm })
    }
}

/// The heuristic's first choice that does not split K.
fn algorithm(
    handle: sys::cublasLtHandle_t,
    product: &Product,
    [first, second, out]: [&MatrixLayout; 3],
) -> Result<sys::cublasLtMatmulAlgo_t> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    const CHOICES: usize = 16;
    let preference = Preference::new()?;
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
    // No reduction scheme is allowed, so no choice has partial sums to reduce.
    preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0u32)?;
    for attribute in [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        preference.set(attribute, &(ALIGNMENT as u32))?;
    }
    let mut choices = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CHOICES];
    let mut count = 0;
    // SAFETY: all descriptors are alive, and `choices` has room for CHOICES results.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            product.0,
            first.0,
            second.0,
            out.0,
            out.0,
            preference.0,
            CHOICES as i32,
            choices.as_mut_ptr().cast(),
            &mut count,
        )
    }
    .result()
    .map_err(|e| failed("choosing an algorithm", e))?;
    // SAFETY: the heuristic initialised the first `count` results.
    let choices = choices.into_iter().take(count as usize).map(|choice| unsafe { choice.assume_init() });
    choices
        .filter(|choice| choice.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && choice.workspaceSize <= WORKSPACE_BYTES)
        .map(|choice| choice.algo)
        .find(|algorithm| !splits_k(algorithm))
        .ok_or_else(|| Error::internal("cuBLASLt has no algorithm that keeps K whole"))
}

/// An algorithm of an earlier process, if this library still runs it.
fn checked(
    handle: sys::cublasLtHandle_t,
    product: &Product,
    [first, second, out]: [&MatrixLayout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
) -> Result<sys::cublasLtMatmulAlgo_t> {
    let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
    // SAFETY: all descriptors are alive, and `found` has room for the result.
    let status = unsafe {
        sys::cublasLtMatmulAlgoCheck(handle, product.0, first.0, second.0, out.0, out.0, &algorithm, found.as_mut_ptr().cast())
    };
    // SAFETY: plain numbers, zero unless the library wrote them.
    let workspace = unsafe { found.assume_init() }.workspaceSize;
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS if workspace <= WORKSPACE_BYTES && !splits_k(&algorithm) => Ok(algorithm),
        status => Err(Error::usage(format!(
            "the algorithm that this product is to run does not run with this cuBLASLt ({status:?}): its results would differ"
        ))
        .help("a run goes on with the version of cuBLASLt that it began with, or starts over with --overwrite")),
    }
}

fn splits_k(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    let (mut parts, mut written) = (0u32, 0usize);
    // SAFETY: the attribute is a u32, and both out-pointers are valid.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
            std::ptr::from_mut(&mut parts).cast(),
            size_of::<u32>(),
            &mut written,
        )
    };
    status != sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS || parts > 1
}

fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::Bf16 => Some(sys::cudaDataType::CUDA_R_16BF),
        DType::F32 => Some(sys::cudaDataType::CUDA_R_32F),
        DType::I32 | DType::U16 | DType::U8 => None,
    }
}

fn failed(what: &str, error: CublasError) -> Error {
    Error::internal(format!("{what} failed: {:?}", error.0))
}

struct Product(sys::cublasLtMatmulDesc_t);

impl Product {
    fn new() -> Result<Self> {
        lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)
            .map(Product)
            .map_err(|e| failed("describing a product", e))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive and the value has the size that is passed, which cuBLASLt compares with the attribute's.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
            .map_err(|e| failed(&format!("setting {attribute:?}"), e))
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(dtype: sys::cudaDataType, layout: &Layout) -> Result<Self> {
        lt::create_matrix_layout(dtype, layout.rows as u64, layout.columns as u64, layout.leading as i64)
            .map(MatrixLayout)
            .map_err(|e| failed("describing a matrix", e))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        lt::create_matmul_pref().map(Preference).map_err(|e| failed("describing a preference", e))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: as for products.
        unsafe { lt::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
            .map_err(|e| failed(&format!("setting {attribute:?}"), e))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a column-major library does with a description: out (rows × columns) = op(first) · op(second).
    fn column_major_product(map: &ColumnMajor, first: &[f64], second: &[f64]) -> Vec<f64> {
        let at = |x: &[f64], layout: &Layout, row: usize, column: usize| {
            let (row, column) = if layout.transposed { (column, row) } else { (row, column) };
            assert!(row < layout.rows && column < layout.columns);
            x[row + column * layout.leading]
        };
        let inner = if map.first.transposed { map.first.rows } else { map.first.columns };
        let mut out = vec![f64::NAN; map.out.rows * map.out.columns];
        for column in 0..map.out.columns {
            for row in 0..map.out.rows {
                out[row + column * map.out.leading] =
                    (0..inner).map(|k| at(first, &map.first, row, k) * at(second, &map.second, k, column)).sum();
            }
        }
        out
    }

    #[test]
    fn column_major_description_computes_the_row_major_product() {
        let (m, n, k) = (3, 5, 4);
        for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let desc = GemmDesc {
                m,
                n,
                k,
                a_transposed,
                b_transposed,
                bias: false,
                accumulate: false,
                input: DType::Bf16,
                output: DType::F32,
                algorithm_rows: None,
            };
            let a_at = |i: usize, l: usize| (i * 7 + l * 3) as f64 - 5.5;
            let b_at = |l: usize, j: usize| (l * 11 + j * 2) as f64 * 0.25 - 3.0;
            let store = |rows: usize, columns: usize, transposed: bool, at: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
                let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
                (0..outer * inner)
                    .map(|i| if transposed { at(i % inner, i / inner) } else { at(i / inner, i % inner) })
                    .collect()
            };
            let a = store(m, k, a_transposed, &a_at);
            let b = store(k, n, b_transposed, &b_at);
            let out = column_major_product(&column_major(&desc), &b, &a);
            for i in 0..m {
                for j in 0..n {
                    let expected: f64 = (0..k).map(|l| a_at(i, l) * b_at(l, j)).sum();
                    assert!(
                        (out[i * n + j] - expected).abs() < 1e-9,
                        "a_transposed {a_transposed}, b_transposed {b_transposed}"
                    );
                }
            }
        }
    }

    #[test]
    fn bias_runs_along_the_rows_of_the_column_major_result() {
        let desc = GemmDesc {
            m: 7,
            n: 3,
            k: 2,
            a_transposed: false,
            b_transposed: true,
            bias: true,
            accumulate: false,
            input: DType::Bf16,
            output: DType::Bf16,
            algorithm_rows: None,
        };
        assert_eq!(column_major(&desc).out, Layout { rows: 3, columns: 7, leading: 3, transposed: false });
    }
}
