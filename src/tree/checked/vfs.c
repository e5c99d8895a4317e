/*
** A layer below SQLite that checks what it reads of a database, over the VFS "unix-excl".
**
** Database file: the last 8 bytes of each page, which SQLite leaves alone in a database with 8 reserved bytes, hold a
** checksum of the rest. It is set when the page is written and checked when it is read, always: this VFS is for such
** databases only.
**
** Write-ahead log: each frame has a checksum of SQLite's own, which SQLite checks after a crash but not when it reads a
** page from the log. This layer checks it at each read. Therefore no transaction may write to a frame twice, as one does
** that spills its cache: connections say PRAGMA cache_spill=OFF.
**
** After ext/misc/cksumvfs.c of SQLite 3.40.1, whose author disclaims copyright to it. That one cannot be used as it is: it
** changes pages on their way into the log, after SQLite has computed the frame's checksum, so that recovery finds no valid
** frame and every commit since the last checkpoint is lost when the process is killed.
**
** A wrong checksum is SQLITE_IOERR_DATA.
*/
#include <string.h>

#include "sqlite3.h"

typedef unsigned char u8;
typedef sqlite3_uint64 u64;
typedef unsigned int u32;

#define WAL_HEADER 32
#define FRAME_HEADER 24
#define PAGE_MIN 512

typedef struct Checked Checked;
struct Checked {
  sqlite3_file base;
  int is_wal;
  u32 page_size; /* of the log, 0: not known yet */
  int swap;      /* the log's checksums are of the other byte order */
};

#define BELOW(p) ((sqlite3_file *)(((Checked *)(p)) + 1))
#define UNDER(v) ((sqlite3_vfs *)((v)->pAppData))

static u32 big_endian(const u8 *a) {
  return ((u32)a[0] << 24) | ((u32)a[1] << 16) | ((u32)a[2] << 8) | (u32)a[3];
}

static u32 word(const u8 *a, int swap) {
  u32 value;
  memcpy(&value, a, 4);
  return swap ? __builtin_bswap32(value) : value;
}

/* The checksum of SQLite's log: n is a multiple of 8. */
static void sum(const u8 *a, int n, int swap, u32 s[2]) {
  int i;
  for (i = 0; i < n; i += 8) {
    s[0] += word(a + i, swap) + s[1];
    s[1] += word(a + i + 4, swap) + s[0];
  }
}

/* The checksum of a database page at an offset: bytes that are right but belong elsewhere are wrong, too. */
static void page_sum(const u8 *page, int n, sqlite3_int64 offset, u8 out[8]) {
  u32 s[2];
  int i;
  s[0] = (u32)((u64)offset >> 9) ^ 0x6f6e6365u;
  s[1] = (u32)n;
  sum(page, n - 8, 0, s);
  for (i = 0; i < 4; i++) {
    out[i] = (u8)(s[0] >> (8 * i));
    out[4 + i] = (u8)(s[1] >> (8 * i));
  }
}

static int fault(sqlite3_int64 offset, int is_wal) {
  sqlite3_log(SQLITE_IOERR_DATA, "wrong checksum at offset %lld of the %s", offset, is_wal ? "log" : "database");
  return SQLITE_IOERR_DATA;
}

/* Reads of fewer bytes than these are of headers, which SQLite reads again with their page, or checks by itself. */
static int check_frame(Checked *p, const u8 *page, int n, sqlite3_int64 offset) {
  sqlite3_file *below = BELOW(p);
  u8 header[WAL_HEADER], before[8];
  sqlite3_int64 frame = offset - FRAME_HEADER;
  u32 s[2];
  int rc;
  if (p->page_size == 0) {
    rc = below->pMethods->xRead(below, header, WAL_HEADER, 0);
    if (rc != SQLITE_OK) return rc;
    p->page_size = big_endian(header + 8);
    p->swap = (header[3] & 1) != (*(const u8 *)&(const u32){1} == 0);
  }
  /* Recovery reads whole frames, header and all, and checks them. */
  if ((u32)n == p->page_size + FRAME_HEADER) return SQLITE_OK;
  if ((u32)n != p->page_size || frame < WAL_HEADER || (frame - WAL_HEADER) % (FRAME_HEADER + n) != 0) return fault(offset, 1);
  rc = below->pMethods->xRead(below, header, FRAME_HEADER, frame);
  if (rc != SQLITE_OK) return rc;
  /* It goes on from the checksum of the frame before, or of the log's own header. */
  rc = below->pMethods->xRead(below, before, 8, frame == WAL_HEADER ? 24 : frame - n - 8);
  if (rc != SQLITE_OK) return rc;
  s[0] = big_endian(before);
  s[1] = big_endian(before + 4);
  sum(header, 8, p->swap, s);
  sum(page, n, p->swap, s);
  if (s[0] != big_endian(header + 16) || s[1] != big_endian(header + 20)) return fault(offset, 1);
  return SQLITE_OK;
}

static int checked_read(sqlite3_file *file, void *buffer, int n, sqlite3_int64 offset) {
  Checked *p = (Checked *)file;
  u8 wanted[8];
  int rc = BELOW(p)->pMethods->xRead(BELOW(p), buffer, n, offset);
  if (n < PAGE_MIN) return rc;
  /* SQLite would take what is cut off for zeros. */
  if (rc == SQLITE_IOERR_SHORT_READ) return fault(offset, p->is_wal);
  if (rc != SQLITE_OK) return rc;
  if (p->is_wal) return check_frame(p, (const u8 *)buffer, n, offset);
  page_sum((const u8 *)buffer, n, offset, wanted);
  return memcmp((const u8 *)buffer + n - 8, wanted, 8) == 0 ? SQLITE_OK : fault(offset, 0);
}

static int checked_write(sqlite3_file *file, const void *buffer, int n, sqlite3_int64 offset) {
  Checked *p = (Checked *)file;
  /* The reserved bytes of SQLite's buffer are nobody's, so they can be set in place. */
  if (!p->is_wal && n >= PAGE_MIN) page_sum((const u8 *)buffer, n, offset, (u8 *)buffer + n - 8);
  return BELOW(p)->pMethods->xWrite(BELOW(p), buffer, n, offset);
}

static int checked_close(sqlite3_file *f) { return BELOW(f)->pMethods->xClose(BELOW(f)); }
static int checked_truncate(sqlite3_file *f, sqlite3_int64 n) { return BELOW(f)->pMethods->xTruncate(BELOW(f), n); }
static int checked_sync(sqlite3_file *f, int flags) { return BELOW(f)->pMethods->xSync(BELOW(f), flags); }
static int checked_size(sqlite3_file *f, sqlite3_int64 *n) { return BELOW(f)->pMethods->xFileSize(BELOW(f), n); }
static int checked_lock(sqlite3_file *f, int lock) { return BELOW(f)->pMethods->xLock(BELOW(f), lock); }
static int checked_unlock(sqlite3_file *f, int lock) { return BELOW(f)->pMethods->xUnlock(BELOW(f), lock); }
static int checked_reserved(sqlite3_file *f, int *out) { return BELOW(f)->pMethods->xCheckReservedLock(BELOW(f), out); }
static int checked_control(sqlite3_file *f, int op, void *arg) { return BELOW(f)->pMethods->xFileControl(BELOW(f), op, arg); }
static int checked_sector(sqlite3_file *f) { return BELOW(f)->pMethods->xSectorSize(BELOW(f)); }
/* A part of a page cannot be checked. */
static int checked_traits(sqlite3_file *f) {
  return BELOW(f)->pMethods->xDeviceCharacteristics(BELOW(f)) & ~SQLITE_IOCAP_SUBPAGE_READ;
}
static int checked_shm_map(sqlite3_file *f, int page, int n, int extend, void volatile **out) {
  return BELOW(f)->pMethods->xShmMap(BELOW(f), page, n, extend, out);
}
static int checked_shm_lock(sqlite3_file *f, int offset, int n, int flags) {
  return BELOW(f)->pMethods->xShmLock(BELOW(f), offset, n, flags);
}
static void checked_shm_barrier(sqlite3_file *f) { BELOW(f)->pMethods->xShmBarrier(BELOW(f)); }
static int checked_shm_unmap(sqlite3_file *f, int remove) { return BELOW(f)->pMethods->xShmUnmap(BELOW(f), remove); }

/* Version 2: without mapped pages, which nothing would check. */
static const sqlite3_io_methods checked_methods = {
    2,              checked_close,   checked_read,     checked_write,   checked_truncate,    checked_sync,
    checked_size,   checked_lock,    checked_unlock,   checked_reserved, checked_control,    checked_sector,
    checked_traits, checked_shm_map, checked_shm_lock, checked_shm_barrier, checked_shm_unmap, 0, 0};

static int checked_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out) {
  Checked *p = (Checked *)file;
  int rc;
  if ((flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) == 0) return UNDER(vfs)->xOpen(UNDER(vfs), name, file, flags, out);
  memset(p, 0, sizeof(*p));
  rc = UNDER(vfs)->xOpen(UNDER(vfs), name, BELOW(p), flags, out);
  if (rc != SQLITE_OK) return rc;
  p->is_wal = (flags & SQLITE_OPEN_WAL) != 0;
  p->base.pMethods = &checked_methods;
  return SQLITE_OK;
}
static int checked_delete(sqlite3_vfs *v, const char *name, int sync) { return UNDER(v)->xDelete(UNDER(v), name, sync); }
static int checked_access(sqlite3_vfs *v, const char *name, int flags, int *out) {
  return UNDER(v)->xAccess(UNDER(v), name, flags, out);
}
static int checked_path(sqlite3_vfs *v, const char *name, int n, char *out) {
  return UNDER(v)->xFullPathname(UNDER(v), name, n, out);
}
static int checked_randomness(sqlite3_vfs *v, int n, char *out) { return UNDER(v)->xRandomness(UNDER(v), n, out); }
static int checked_sleep(sqlite3_vfs *v, int us) { return UNDER(v)->xSleep(UNDER(v), us); }
static int checked_time(sqlite3_vfs *v, double *out) { return UNDER(v)->xCurrentTime(UNDER(v), out); }
static int checked_error(sqlite3_vfs *v, int n, char *out) { return UNDER(v)->xGetLastError(UNDER(v), n, out); }
static int checked_time64(sqlite3_vfs *v, sqlite3_int64 *out) { return UNDER(v)->xCurrentTimeInt64(UNDER(v), out); }

static sqlite3_vfs checked_vfs = {
    2, 0, 1024, 0, "oncefs-checked", 0, checked_open, checked_delete, checked_access, checked_path,
    0, 0, 0, 0, checked_randomness, checked_sleep, checked_time, checked_error, checked_time64, 0, 0, 0};

/* Makes the VFS "oncefs-checked" known. To be called once. */
int oncefs_register_checked(void) {
  sqlite3_vfs *under;
  int rc = sqlite3_initialize();
  if (rc != SQLITE_OK) return rc;
  under = sqlite3_vfs_find("unix-excl");
  if (under == 0) return SQLITE_ERROR;
  checked_vfs.pAppData = under;
  checked_vfs.szOsFile = under->szOsFile + (int)sizeof(Checked);
  checked_vfs.mxPathname = under->mxPathname;
  return sqlite3_vfs_register(&checked_vfs, 0);
}

/* Sets the checksum of a page that is written without this VFS. */
void oncefs_stamp_page(unsigned char *page, int n, sqlite3_int64 offset) { page_sum(page, n, offset, page + n - 8); }

/* Makes databases that this connection makes, by CREATE or VACUUM, have the 8 reserved bytes. */
int oncefs_reserve(sqlite3 *db) {
  int n = 8;
  return sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES, &n);
}
