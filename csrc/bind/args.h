// How the bindings read and check their arguments, without PyTorch: a tensor arrives as the tuple
// (data_ptr, dtype code, sizes, strides in elements), or None where it may be absent. Every
// complaint names the op, the tensor and the dimension.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/lib/dispatch.h"
#include "cpu/lib/types.h"

namespace mingcore {

namespace py = pybind11;

constexpr int MAX_DIMS = 5;

[[noreturn]] inline void fail(const std::string& message) { throw py::value_error(message); }

struct Array {
    char* data = nullptr;
    Dtype dtype = Dtype::f32;
    int dims = 0;
    int64_t size[MAX_DIMS] = {0}, stride[MAX_DIMS] = {0};

    bool empty() const {
        for (int i = 0; i < dims; ++i)
            if (size[i] == 0) return true;
        return false;
    }
    std::string shape() const {
        std::string s = "[";
        for (int i = 0; i < dims; ++i) s += (i ? ", " : "") + std::to_string(size[i]);
        return s + "]";
    }
};

// An op's arguments by name, so that every complaint reads "op: tensor must be ..., got ...".
class Args {
public:
    explicit Args(const char* op) : op_(op) {}

    [[noreturn]] void reject(const std::string& name, const std::string& must,
                             const std::string& got) const {
        fail(op_ + ": " + name + " must be " + must + ", got " + got);
    }

    // Types it takes, by code: float32, bfloat16 and float16; of weights int8 and uint8 as well; or
    // int32 alone; or int64 alone.
    enum class Takes { floats, weights, ids, positions };

    Array read(const py::object& value, const char* name, int dims, bool dense_last = true,
               Takes takes = Takes::floats) const {
        if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != 4)
            reject(name, "(data_ptr, dtype, sizes, strides)", std::string(py::repr(value)));
        PyObject* t = value.ptr();
        PyObject *sizes = PyTuple_GET_ITEM(t, 2), *strides = PyTuple_GET_ITEM(t, 3);
        Array a;
        a.data = reinterpret_cast<char*>(static_cast<uintptr_t>(integer(PyTuple_GET_ITEM(t, 0))));
        const int64_t code = integer(PyTuple_GET_ITEM(t, 1));
        const bool ids = takes == Takes::ids, weights = takes == Takes::weights;
        const bool positions = takes == Takes::positions;
        if (ids && code != static_cast<int64_t>(Dtype::i32))
            reject(name, "int32 (5)", "code " + std::to_string(code));
        if (positions && code != static_cast<int64_t>(Dtype::i64))
            reject(name, "int64 (6)", "code " + std::to_string(code));
        if (!ids && !positions && (code < 0 || code > (weights ? 4 : 2)))
            reject(name,
                   std::string("float32 (0), bfloat16 (1) or float16 (2)") +
                       (weights ? ", int8 (3), uint8 (4)" : ""),
                   "code " + std::to_string(code));
        a.dtype = static_cast<Dtype>(code);
        if (!PyTuple_Check(sizes) || !PyTuple_Check(strides) ||
            PyTuple_GET_SIZE(sizes) != PyTuple_GET_SIZE(strides))
            reject(name, "given sizes and strides as tuples of one length",
                   std::string(py::repr(value)));
        a.dims = static_cast<int>(PyTuple_GET_SIZE(sizes));
        if (dims < 0 && a.dims >= 1 && a.dims <= MAX_DIMS) dims = a.dims;  // any number
        if (a.dims != dims)
            reject(name, std::to_string(dims) + "-dimensional",
                   std::to_string(a.dims) + " dimensions");
        for (int i = 0; i < dims; ++i) {
            a.size[i] = integer(PyTuple_GET_ITEM(sizes, i));
            a.stride[i] = integer(PyTuple_GET_ITEM(strides, i));
            if (a.size[i] < 0) reject(name, "of sizes >= 0", a.shape());
        }
        if (!a.data && !a.empty()) reject(name, "backed by memory", "a null pointer");
        if (dense_last && a.size[dims - 1] > 1 && a.stride[dims - 1] != 1)
            reject(name, "dense in its last dimension",
                   "stride " + std::to_string(a.stride[dims - 1]));
        return a;
    }

    // [..., K] of any rank as [M, K], where its rows have one stride.
    Array read_rows(const py::object& value, const char* name) const {
        const Array a = read(value, name, -1);
        Array rows = a;
        rows.dims = 2, rows.size[0] = 1, rows.stride[0] = 0;
        rows.size[1] = a.size[a.dims - 1], rows.stride[1] = a.stride[a.dims - 1];
        for (int i = a.dims - 2; i >= 0; --i) {
            if (a.size[i] == 1) continue;
            if (rows.size[0] == 1) rows.stride[0] = a.stride[i];
            else if (!a.empty() && a.stride[i] != rows.stride[0] * rows.size[0])
                reject(name, "a matrix of rows at one distance", a.shape());
            rows.size[0] *= a.size[i];
        }
        return rows;
    }

    Array read_or_none(const py::object& value, const char* name, int dims) const {
        return value.is_none() ? Array() : read(value, name, dims);
    }

    void size(const Array& a, const char* name, int dim, int64_t expected,
              const char* letter) const {
        if (a.size[dim] != expected)
            reject(name,
                   std::string(letter) + " = " + std::to_string(expected) + " in dimension " +
                       std::to_string(dim),
                   a.shape());
    }

    void dtype(const Array& a, const char* name, Dtype expected, const char* spelled) const {
        static const char* const names[] = {"float32", "bfloat16", "float16", "int8", "uint8"};
        if (a.dtype != expected) reject(name, spelled, names[static_cast<int>(a.dtype)]);
    }

    // Rejects overlap: elements would be written twice, in any order.
    void writable(const Array& a, const char* name) const {
        int64_t extent = 1;
        for (int i = a.dims - 1; i >= 0; --i) {
            if (a.size[i] > 1 && a.stride[i] < extent)
                reject(name, "free of overlap in dimension " + std::to_string(i),
                       "stride " + std::to_string(a.stride[i]));
            extent = a.stride[i] * (a.size[i] - 1) + extent;
        }
    }

    int threads(int n) const {
        if (n < 1 || n > 4096) reject("threads", "in 1..4096", std::to_string(n));
        return n;
    }

private:
    int64_t integer(PyObject* o) const {
        const long long v = PyLong_AsLongLong(o);
        if (v == -1 && PyErr_Occurred()) throw py::error_already_set();
        return v;
    }

    std::string op_;
};

template <class T>
T one_of(const Args& args, const char* name, const std::string& value, const char* const* names) {
    std::string all;
    for (int i = 0; names[i]; ++i) {
        if (value == names[i]) return static_cast<T>(i);
        all += std::string(i ? ", " : "") + names[i];
    }
    args.reject(name, "one of " + all, "'" + value + "'");
}

inline const char* const act_names[] = {"none", "silu", "gelu", "gelu_tanh", "swiglu", nullptr};
inline const char* const layout_names[] = {"rows", "panels", "panels_swiglu", nullptr};

// The type code of a tensor that `read` has not checked yet; -1 where it is none.
inline int64_t dtype_of(const py::object& value) {
    PyObject* t = value.ptr();
    if (!PyTuple_Check(t) || PyTuple_GET_SIZE(t) != 4) return -1;
    PyObject* code = PyTuple_GET_ITEM(t, 1);
    return PyLong_Check(code) ? PyLong_AsLongLong(code) : -1;
}

inline Heads heads_of(const Array& a) {  // [B, T, Hn, D]
    return {a.data, a.stride[0], a.stride[1], a.stride[2]};
}

inline void same_dtype(const Args& args, const Array& a, const char* name, const Array& b,
                       const char* as) {
    if (a.dtype != b.dtype) args.reject(name, std::string("of ") + as + "'s dtype", "another");
}

// What a stream knows of its rows: six addresses of [B], 0 where absent, int64 but for the bytes of
// `ended`. The Python adapter has checked them and made them dense.
inline StreamRows stream_rows(const Args& args, const py::tuple& t) {
    if (t.size() != 6) args.reject("rows", "six addresses", std::to_string(t.size()));
    auto at = [&](int i) { return t[i].cast<uintptr_t>(); };
    StreamRows rows;
    rows.lengths = reinterpret_cast<const int64_t*>(at(0));
    rows.valid = reinterpret_cast<const int64_t*>(at(1));
    rows.ended = reinterpret_cast<const bool*>(at(2));
    rows.last = at(3) != 0;
    rows.lengths_out = reinterpret_cast<int64_t*>(at(4));
    rows.emitted = reinterpret_cast<int64_t*>(at(5));
    if (!rows.lengths_out || !rows.emitted) args.reject("rows", "given where to count", "null");
    return rows;
}

// valid in 0..L, lengths >= 0: a wrong one would read beyond the chunk.
inline void check_rows(const Args& args, const StreamRows& rows, int64_t B, int64_t L) {
    for (int64_t b = 0; b < B; ++b) {
        if (rows.valid && (rows.valid[b] < 0 || rows.valid[b] > L))
            args.reject("valid", "in 0.." + std::to_string(L), std::to_string(rows.valid[b]));
        if (rows.lengths && rows.lengths[b] < 0)
            args.reject("state.lengths", ">= 0", std::to_string(rows.lengths[b]));
    }
}

}  // namespace mingcore
