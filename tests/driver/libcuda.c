/* A stand-in for the CUDA driver library, for tests of the code that talks to it on machines without a GPU.
 *
 * It has the functions that src/device/cuda/hardware.rs and its modules call, and no others. Device memory is host memory, filled with
 * zeros; copies copy; kernels do nothing. FAKE_CUDA says what goes wrong, as comma-separated NAME=NUMBER:
 *   init=CODE      cuInit answers CODE
 *   devices=N      there are N devices (1)
 *   context=CODE   the device cannot be opened
 *   load=CODE      no module can be loaded
 *   memory=BYTES   what can be allocated in all (1 GiB)
 *   launches=N     launch N and everything after it answer 719: the device is lost
 *   graph=CODE     no graph can be made
 *   clusters=CODE  launches in clusters, of kernels that take tensor maps, answer CODE
 * Compiled with -DVERY_OLD it has cuInit alone, with -DCUDA_11 neither tensor maps nor clusters.
 *
 * Signatures: CUDA Driver API, "Initialization" to "Graph Management", "Tensor Map Object Management". */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, LAUNCH_FAILED = 719,
       CAPTURE_UNSUPPORTED = 900 };

static unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *at = getenv("FAKE_CUDA");
    size_t length = strlen(name);
    for (; at && *at; at = strchr(at, ','), at = at ? at + 1 : at) {
        if (!strncmp(at, name, length) && at[length] == '=') return strtoull(at + length + 1, NULL, 10);
    }
    return otherwise;
}

int cuInit(unsigned flags) {
    return flags ? INVALID_VALUE : (int)setting("init", SUCCESS);
}

#ifndef VERY_OLD

typedef unsigned long long Address;

/* Bytes that are allocated, each block behind a header that holds its size. */
enum { HEADER = 256 };
static unsigned long long taken, launches, lost;

/* The answer of every call once the device is lost. */
static int alive(void) {
    return __atomic_load_n(&lost, __ATOMIC_SEQ_CST) ? LAUNCH_FAILED : SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    switch (code) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case 209: *text = "no kernel image is available for execution on the device"; break;
    case LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    case 803: *text = "system has unsupported display driver / cuda driver combination"; break;
    default: *text = NULL; return INVALID_VALUE;
    }
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = (int)setting("devices", 1);
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= (int)setting("devices", 1)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    strncpy(name, "Stand-in GPU", (size_t)length);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = setting("memory", 1 << 30);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = 4; break; /* multiprocessors */
    case 75: *value = 9; break; /* compute capability, major */
    default: *value = 0;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &taken;
    return (int)setting("context", SUCCESS);
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    return context == &taken ? SUCCESS : INVALID_VALUE;
}

/* Work that a graph holds: a launch (no bytes), a copy, a zeroing (no origin). */
struct Work {
    Address to, from;
    size_t bytes;
    struct Work *next;
};

struct Graph {
    struct Work *first, **last;
};

enum { STREAM = 0x57 };
struct Stream {
    int kind;
    struct Graph *recording;
};

static struct Stream *stream_of(void *stream) {
    struct Stream *s = stream;
    return s && s->kind == STREAM ? s : NULL;
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    struct Stream *s = calloc(1, sizeof *s);
    s->kind = STREAM;
    *stream = s;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    if (!stream_of(stream) || stream_of(stream)->recording) return INVALID_VALUE;
    free(stream);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    if (!stream_of(stream)) return INVALID_VALUE;
    return stream_of(stream)->recording ? CAPTURE_UNSUPPORTED : alive();
}

static void work(Address to, Address from, size_t bytes) {
    if (from) memmove((void *)to, (void *)from, bytes);
    else if (bytes) memset((void *)to, 0, bytes);
    else if (__atomic_add_fetch(&launches, 1, __ATOMIC_SEQ_CST) >= setting("launches", ~0ull)) {
        __atomic_store_n(&lost, 1, __ATOMIC_SEQ_CST);
    }
}

/* Does the work, or records it. */
static int put(void *stream, Address to, Address from, size_t bytes) {
    struct Stream *s = stream_of(stream);
    if (!s) return INVALID_VALUE;
    if (!s->recording) {
        work(to, from, bytes);
        return alive();
    }
    struct Work *w = malloc(sizeof *w);
    *w = (struct Work){to, from, bytes, NULL};
    *s->recording->last = w;
    s->recording->last = &w->next;
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
    struct Stream *s = stream_of(stream);
    if (!s || s->recording || mode != 2) return INVALID_VALUE;
    s->recording = calloc(1, sizeof *s->recording);
    s->recording->last = &s->recording->first;
    return alive();
}

int cuStreamEndCapture(void *stream, void **graph) {
    struct Stream *s = stream_of(stream);
    if (!s || !s->recording) return INVALID_VALUE;
    *graph = s->recording;
    s->recording = NULL;
    return SUCCESS;
}

/* An executable graph takes the work over. */
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    struct Graph *g = graph, *made;
    if (!g || flags) return INVALID_VALUE;
    if (setting("graph", SUCCESS)) return (int)setting("graph", SUCCESS);
    made = malloc(sizeof *made);
    *made = *g;
    g->first = NULL;
    *executable = made;
    return alive();
}

int cuGraphDestroy(void *graph) {
    struct Graph *g = graph;
    for (struct Work *w = g->first, *next; w; w = next) {
        next = w->next;
        free(w);
    }
    free(g);
    return SUCCESS;
}

int cuGraphExecDestroy(void *executable) {
    return cuGraphDestroy(executable);
}

int cuGraphLaunch(void *executable, void *stream) {
    struct Graph *g = executable;
    if (!stream_of(stream) || stream_of(stream)->recording) return INVALID_VALUE;
    for (struct Work *w = g->first; w && !alive(); w = w->next) work(w->to, w->from, w->bytes);
    return alive();
}

int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = &lost;
    return alive();
}

int cuEventRecord(void *event, void *stream) {
    return event == &lost && stream_of(stream) ? alive() : INVALID_VALUE;
}

int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = 1;
    return start && end ? alive() : INVALID_VALUE;
}

int cuEventSynchronize(void *event) {
    return event == &lost ? alive() : INVALID_VALUE;
}

int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return stream_of(stream) && event == &lost && !flags ? alive() : INVALID_VALUE;
}

int cuEventDestroy_v2(void *event) {
    return event == &lost ? SUCCESS : INVALID_VALUE;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *total = setting("memory", 1 << 30);
    *free_bytes = *total - __atomic_load_n(&taken, __ATOMIC_SEQ_CST);
    return alive();
}

int cuMemAlloc_v2(Address *address, size_t bytes) {
    if (alive()) return alive();
    if (__atomic_add_fetch(&taken, bytes, __ATOMIC_SEQ_CST) > setting("memory", 1 << 30)) {
        __atomic_sub_fetch(&taken, bytes, __ATOMIC_SEQ_CST);
        return OUT_OF_MEMORY;
    }
    char *block = aligned_alloc(HEADER, (HEADER + bytes + HEADER - 1) / HEADER * HEADER);
    memset(block + HEADER, 0, bytes);
    memcpy(block, &bytes, sizeof bytes);
    *address = (Address)(block + HEADER);
    return SUCCESS;
}

int cuMemFree_v2(Address address) {
    size_t bytes;
    char *block = (char *)address - HEADER;
    memcpy(&bytes, block, sizeof bytes);
    __atomic_sub_fetch(&taken, bytes, __ATOMIC_SEQ_CST);
    free(block);
    return alive();
}

int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    *memory = malloc(bytes);
    return *memory && !flags ? alive() : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *memory) {
    free(memory);
    return alive();
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    if (!stream_of(stream) || stream_of(stream)->recording) return CAPTURE_UNSUPPORTED;
    memcpy((void *)to, from, bytes);
    return alive();
}

int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    if (!stream_of(stream) || stream_of(stream)->recording) return CAPTURE_UNSUPPORTED;
    memcpy(to, (void *)from, bytes);
    return alive();
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return bytes ? put(stream, to, from, bytes) : alive();
}

int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    if (value) return INVALID_VALUE;
    return bytes ? put(stream, to, 0, bytes) : alive();
}

int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)image;
    return (int)setting("load", SUCCESS);
}

int cuModuleUnload(void *module) {
    return module ? SUCCESS : INVALID_VALUE;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)name;
    return module && *name ? SUCCESS : INVALID_VALUE;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    (void)attribute;
    return function && value > 0 ? SUCCESS : INVALID_VALUE;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
    (void)shared;
    if (!function || !arguments || extra) return INVALID_VALUE;
    if (!x || !y || !z || y > 65535 || z > 65535 || block_x > 1024 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    return put(stream, 0, 0, 0);
}

#ifndef CUDA_11

/* What a map is filled with here, so that a launch knows it again. */
static const unsigned long long MAP = 0x70616d20726f7301;
typedef struct { unsigned long long words[16]; } Map;

/* bf16 in rows of 128 swizzled bytes, zeros outside; whatever else the driver asks of an array and its boxes. */
static int encode(Map *map, int type, unsigned rank, void *address, const unsigned long long *sizes,
                  const unsigned long long *strides, const unsigned *steps, const int modes[4], unsigned row, unsigned lines,
                  unsigned most) {
    if ((size_t)map % 64 || type != 9 || rank < 2 || rank > 5 || !address || (size_t)address % 16) return INVALID_VALUE;
    if (modes[0] != 0 || modes[1] != 3 || modes[2] != 3 || modes[3] != 0) return INVALID_VALUE;
    unsigned long long least = 2 * sizes[0];
    for (unsigned i = 0; i < rank; ++i) {
        if (!sizes[i] || sizes[i] > 1ull << 32 || steps[i] != 1) return INVALID_VALUE;
        if (i == 0) continue;
        if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40 || strides[i - 1] < least) return INVALID_VALUE;
        least = strides[i - 1] * sizes[i];
    }
    if (row != 64 || !lines || lines > most) return INVALID_VALUE;
    for (int i = 0; i < 16; ++i) map->words[i] = MAP;
    return alive();
}

int cuTensorMapEncodeTiled(Map *map, int type, unsigned rank, void *address, const unsigned long long *sizes,
                           const unsigned long long *strides, const unsigned *box, const unsigned *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    for (unsigned i = 2; i < rank && i < 5; ++i) {
        if (box[i] != 1) return INVALID_VALUE;
    }
    const int modes[4] = {interleave, swizzle, promotion, fill};
    return encode(map, type, rank, address, sizes, strides, steps, modes, box[0], box[1], 256);
}

int cuTensorMapEncodeIm2col(Map *map, int type, unsigned rank, void *address, const unsigned long long *sizes,
                            const unsigned long long *strides, const int *lower, const int *upper, unsigned channels,
                            unsigned pixels, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    if (rank != 4) return INVALID_VALUE;
    for (int i = 0; i < 2; ++i) {
        if (lower[i] < -128 || lower[i] > 127 || upper[i] < -128 || upper[i] > 127) return INVALID_VALUE;
        if ((long long)sizes[1 + i] + upper[i] - lower[i] < 1) return INVALID_VALUE; /* no base pixel */
    }
    const int modes[4] = {interleave, swizzle, promotion, fill};
    return encode(map, type, rank, address, sizes, strides, steps, modes, channels, pixels, 1024);
}

typedef struct {
    int id;
    char pad[4];
    union { char bytes[64]; unsigned cluster[3]; } value;
} Attribute;

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream;
    Attribute *attributes;
    unsigned count;
} Configuration;

/* Kernels here take two maps first. */
int cuLaunchKernelEx(const Configuration *c, void *function, void **arguments, void **extra) {
    if (!function || !arguments || extra || c->count != 1) return INVALID_VALUE;
    const unsigned *cluster = c->attributes->value.cluster;
    if (c->attributes->id != 4 || !cluster[0] || cluster[0] > 8 || cluster[1] != 1 || cluster[2] != 1) return INVALID_VALUE;
    if (!c->grid[0] || c->grid[0] % cluster[0] || c->grid[1] != 1 || c->grid[2] != 1) return INVALID_VALUE;
    if ((c->block[0] != 256 && c->block[0] != 384) || c->block[1] != 1 || c->block[2] != 1) return INVALID_VALUE;
    if (c->shared > 232448) return INVALID_VALUE;
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 16; ++j) {
            if (((const Map *)arguments[i])->words[j] != MAP) return INVALID_VALUE;
        }
    }
    const int refused = (int)setting("clusters", SUCCESS);
    return refused ? refused : put(c->stream, 0, 0, 0);
}

#endif

#endif
