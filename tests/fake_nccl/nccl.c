// NCCL's ABI between processes of one machine, over host memory: what src/comm/nccl calls, for non-blocking communicators alone. Bytes go through a ring of shared
// memory per pair of ranks; a message begins with what its sender was called with, so calls that do not match are an error, where NCCL itself would hang.
// Work is done while the caller asks ncclCommGetAsyncError, and when that answers ncclSuccess it is all done, streams or not.
// FAKE_NCCL_FAIL=RANK:OPERATION makes that operation (counted from 1) of that rank an error, FAKE_NCCL_HANG=RANK:OPERATION one that never ends.
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 } result;
enum { RING = 1 << 18, MAGIC = 0xcafebeef, MOST_TRANSFERS = 256 };
enum { ALL_GATHER = 1, POINT_TO_POINT = 2 };

typedef struct {
    char bytes[128];
} unique_id;
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking;
} config;

// One rank writes, one reads.
struct ring {
    _Atomic uint64_t written, read;
    unsigned char bytes[RING];
};
struct segment {
    _Atomic int world; // 0 until the segment is ready
    _Atomic int arrived;
    struct ring rings[]; // [from * world + to]
};
// What a call was, as its peer must have made it too.
struct call {
    uint64_t operation, count;
    int kind, type;
};
struct transfer {
    int sends, peer;
    struct call call;
    unsigned char *data;
    uint64_t bytes, moved; // moved counts the call too
};
typedef struct {
    int alive, rank, world, joined, finalized;
    char name[128], error[512];
    struct segment *segment;
    size_t segment_bytes;
    void *stream;
    uint64_t operation; // operations begun
    int transfers;
    struct transfer transfer[MOST_TRANSFERS];
    result state;
} *communicator;

static _Thread_local struct {
    int depth;
    communicator comm;
    int began; // this group's operation is counted
} group;
static _Thread_local char last_error[512];

static result fail(communicator comm, result status, const char *words) {
    snprintf(last_error, sizeof last_error, "%s", words);
    if (comm) comm->state = status, memcpy(comm->error, last_error, sizeof last_error);
    return status;
}
static size_t type_bytes(int type) { return (size_t[]){1, 1, 4, 4, 8, 8, 2, 4, 8, 2}[type]; }
static int chosen(communicator comm, const char *variable) {
    int rank, operation;
    const char *value = getenv(variable);
    return value && sscanf(value, "%d:%d", &rank, &operation) == 2 && rank == comm->rank && (uint64_t)operation == comm->operation;
}

int ncclGetVersion(int *version) { return *version = 22809, SUCCESS; }
const char *ncclGetErrorString(result status) {
    return status == SYSTEM_ERROR ? "unhandled system error" : status == INVALID_ARGUMENT ? "invalid argument"
         : status == INVALID_USAGE ? "invalid usage" : "other";
}
const char *ncclGetLastError(communicator comm) { return comm ? comm->error : last_error; }

result ncclGetUniqueId(unique_id *id) {
    const char *address = getenv("NCCL_COMM_ID");
    memset(id, 0, sizeof *id);
    if (address) snprintf(id->bytes, sizeof id->bytes, "/fake-nccl-%s", address);
    else snprintf(id->bytes, sizeof id->bytes, "/fake-nccl-%d-%lld", getpid(), (long long)time(NULL) * 1000 + rand() % 1000);
    return SUCCESS;
}

// Opens the shared memory, which rank 0 makes, and counts itself in.
static result join(communicator comm) {
    size_t bytes = sizeof(struct segment) + sizeof(struct ring) * comm->world * comm->world;
    if (!comm->segment) {
        if (comm->rank == 0) shm_unlink(comm->name);
        int file = shm_open(comm->name, comm->rank == 0 ? O_RDWR | O_CREAT | O_EXCL : O_RDWR, 0600);
        struct stat found = {0};
        if (file < 0) return comm->rank == 0 ? fail(comm, SYSTEM_ERROR, "no shared memory") : IN_PROGRESS;
        if (comm->rank == 0 && ftruncate(file, bytes)) return fail(comm, SYSTEM_ERROR, "no shared memory");
        fstat(file, &found);
        if (found.st_size > 0) comm->segment = mmap(NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        comm->segment_bytes = found.st_size;
        close(file);
        if (!comm->segment) return IN_PROGRESS;
        if (comm->rank == 0) atomic_store(&comm->segment->world, comm->world);
    }
    int world = atomic_load(&comm->segment->world);
    if (!world) return IN_PROGRESS;
    if (world != comm->world) return fail(comm, INVALID_ARGUMENT, "rank 0 has another number of ranks");
    if (!comm->joined) comm->joined = 1, atomic_fetch_add(&comm->segment->arrived, 1);
    if (atomic_load(&comm->segment->arrived) < world) return IN_PROGRESS;
    if (comm->rank == 0) shm_unlink(comm->name);
    return SUCCESS;
}

result ncclCommInitRankConfig(communicator *out, int world, unique_id id, int rank, config *settings) {
    if (settings->magic != MAGIC || settings->size < sizeof(config) || settings->version < 21400 || settings->blocking)
        return fail(NULL, INVALID_ARGUMENT, "a configuration of a non-blocking communicator is expected");
    if (rank < 0 || rank >= world) return fail(NULL, INVALID_ARGUMENT, "no such rank");
    communicator comm = *out = calloc(1, sizeof **out);
    comm->alive = 1, comm->rank = rank, comm->world = world;
    for (int i = 0; i < 127 && id.bytes[i]; i++) comm->name[i] = i > 0 && id.bytes[i] == '/' ? '-' : id.bytes[i];
    return comm->state = IN_PROGRESS;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

// Moves up to `bytes` bytes between a buffer and a ring; returns how many.
static uint64_t move(struct ring *ring, int sends, unsigned char *buffer, uint64_t bytes) {
    uint64_t written = atomic_load(&ring->written), read = atomic_load(&ring->read);
    uint64_t at = (sends ? written : read) % RING, possible = sends ? RING - (written - read) : written - read;
    bytes = least(least(bytes, possible), RING - at);
    if (sends) memcpy(ring->bytes + at, buffer, bytes), atomic_store(&ring->written, written + bytes);
    else memcpy(buffer, ring->bytes + at, bytes), atomic_store(&ring->read, read + bytes);
    return bytes;
}

// Moves a transfer on, header first. True when it is done.
static int advance(communicator comm, struct transfer *t) {
    int from = t->sends ? comm->rank : t->peer, to = t->sends ? t->peer : comm->rank;
    struct ring *ring = &comm->segment->rings[from * comm->world + to];
    for (uint64_t bytes = 1; bytes > 0 && t->moved < sizeof t->call + t->bytes; t->moved += bytes) {
        struct call call = t->call, mine = t->call;
        if (t->moved < sizeof call) {
            if (!t->sends && atomic_load(&ring->written) - atomic_load(&ring->read) < sizeof call) return 0;
            if (t->sends && RING - (atomic_load(&ring->written) - atomic_load(&ring->read)) < sizeof call) return 0;
            for (bytes = 0; bytes < sizeof call;) bytes += move(ring, t->sends, (unsigned char *)&call + bytes, sizeof call - bytes);
            if (!t->sends && memcmp(&call, &mine, sizeof call)) {
                char words[400];
                snprintf(words, sizeof words, "operation %llu: rank %d calls %s of %llu elements of type %d, and rank %d calls operation %llu, %s of %llu of type %d",
                         (unsigned long long)mine.operation, comm->rank, mine.kind == ALL_GATHER ? "ncclAllGather" : "ncclRecv",
                         (unsigned long long)mine.count, mine.type, t->peer, (unsigned long long)call.operation,
                         call.kind == ALL_GATHER ? "ncclAllGather" : "ncclSend", (unsigned long long)call.count, call.type);
                fail(comm, INVALID_USAGE, words);
                return 0;
            }
        } else {
            uint64_t done = t->moved - sizeof call;
            bytes = move(ring, t->sends, t->data + done, t->bytes - done);
        }
    }
    return t->moved == sizeof t->call + t->bytes;
}

// Whether an earlier transfer of the same ring comes first.
static int must_wait(communicator comm, int index) {
    for (int i = 0; i < index; i++)
        if (comm->transfer[i].sends == comm->transfer[index].sends && comm->transfer[i].peer == comm->transfer[index].peer) return 1;
    return 0;
}

static result progress(communicator comm) {
    if (comm->state != IN_PROGRESS) return comm->state;
    if (!comm->operation) return comm->state = join(comm);
    if (comm->finalized) return comm->state = SUCCESS;
    if (chosen(comm, "FAKE_NCCL_HANG")) return IN_PROGRESS;
    if (chosen(comm, "FAKE_NCCL_FAIL")) return fail(comm, SYSTEM_ERROR, "a failure on demand");
    for (int i = 0; i < comm->transfers && comm->state == IN_PROGRESS;)
        if (!must_wait(comm, i) && advance(comm, &comm->transfer[i]))
            memmove(&comm->transfer[i], &comm->transfer[i + 1], sizeof(struct transfer) * (--comm->transfers - i));
        else i++;
    if (comm->transfers == 0 && comm->state == IN_PROGRESS) comm->state = SUCCESS;
    return comm->state;
}

result ncclCommGetAsyncError(communicator comm, result *state) {
    if (!comm->alive) return fail(NULL, INVALID_ARGUMENT, "the communicator is gone");
    return *state = progress(comm), SUCCESS;
}

// Begins an operation, of one call or of a group of them.
static result begin(communicator comm, void *stream) {
    if (!comm->alive || comm->finalized) return fail(NULL, INVALID_ARGUMENT, "the communicator is gone");
    if (group.depth && group.began) return group.comm == comm ? SUCCESS : fail(comm, INVALID_USAGE, "a group of two communicators");
    if (comm->state != SUCCESS) return fail(comm, INVALID_USAGE, "the operation before is not done");
    if (comm->operation && comm->stream != stream) return fail(comm, INVALID_USAGE, "another stream than before");
    comm->stream = stream, comm->operation++, comm->state = IN_PROGRESS;
    group.comm = comm, group.began = group.depth > 0;
    return SUCCESS;
}
static result add(communicator comm, int sends, int peer, const void *data, uint64_t count, int type, int kind) {
    if (comm->transfers == MOST_TRANSFERS || peer < 0 || peer >= comm->world) return fail(comm, INVALID_ARGUMENT, "no such rank, or too many transfers");
    struct transfer *t = &comm->transfer[comm->transfers++];
    memset(t, 0, sizeof *t);
    t->sends = sends, t->peer = peer, t->data = (unsigned char *)data, t->bytes = count * type_bytes(type);
    t->call.operation = comm->operation, t->call.count = count, t->call.kind = kind, t->call.type = type;
    return SUCCESS;
}

result ncclAllGather(const void *part, void *whole, size_t count, int type, communicator comm, void *stream) {
    result status = begin(comm, stream);
    for (int peer = 0; peer < comm->world && !status; peer++) {
        status = add(comm, 1, peer, part, count, type, ALL_GATHER);
        if (!status) status = add(comm, 0, peer, (char *)whole + peer * count * type_bytes(type), count, type, ALL_GATHER);
    }
    return status || group.depth ? status : progress(comm);
}
result ncclSend(const void *data, size_t count, int type, int peer, communicator comm, void *stream) {
    result status = begin(comm, stream);
    if (!status) status = add(comm, 1, peer, data, count, type, POINT_TO_POINT);
    return status || group.depth ? status : progress(comm);
}
result ncclRecv(void *data, size_t count, int type, int peer, communicator comm, void *stream) {
    result status = begin(comm, stream);
    if (!status) status = add(comm, 0, peer, data, count, type, POINT_TO_POINT);
    return status || group.depth ? status : progress(comm);
}
result ncclGroupStart(void) { return group.depth++ ? SUCCESS : (group.began = 0, SUCCESS); }
result ncclGroupEnd(void) {
    if (group.depth == 0) return fail(NULL, INVALID_USAGE, "no group");
    return --group.depth || !group.began ? SUCCESS : progress(group.comm);
}

result ncclCommFinalize(communicator comm) {
    if (comm->state != SUCCESS) return fail(comm, INVALID_USAGE, "the operation before is not done");
    return comm->finalized = 1, comm->operation++, comm->state = IN_PROGRESS;
}
// The memory of a communicator that is gone is kept, so that its use is an error.
result ncclCommAbort(communicator comm) {
    if (!comm->alive) return fail(NULL, INVALID_ARGUMENT, "the communicator is gone");
    if (comm->rank == 0) shm_unlink(comm->name); // where not all ranks came
    if (comm->segment) munmap(comm->segment, comm->segment_bytes);
    return comm->alive = 0, SUCCESS;
}
result ncclCommDestroy(communicator comm) {
    if (!comm->finalized || comm->state != SUCCESS) return fail(comm, INVALID_USAGE, "finalize comes first");
    return ncclCommAbort(comm);
}
