// sink: an S3-shaped (for uploads also a Cloud-Storage-shaped, and below /devstoreaccount1/ an Azure-shaped) server that reads every request body to its end and throws it away, so that what a client costs
// shows up and what a server costs does not. One thread, epoll; it listens on 127.0.0.1 only and ends with its parent.
//
//   cc -O2 -o sink sink.c -ldl
//   sink PORT [DELAY_MS [CERTIFICATE KEY]]      DELAY_MS: answers so long after a request is complete, to stand in for
//                                               a far store; CERTIFICATE and KEY (PEM files): speaks TLS
//   sink ... remember                           keeps names and sizes: HEAD and lists answer as a store's would
//
// GET /_stats prints what was counted since it was last asked. No signature is checked; without "remember" every HEAD
// of a key says 404 and every list is empty. OpenSSL is loaded when TLS is asked for: its headers are not needed.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };      // where in a request a connection is
enum { ANSWER, STATS, NOT_FOUND, FOUND, LISTING, SESSION, GOES_ON };  // what it is answered with
#define HEAD_MAX 65536

typedef struct conn {
  int fd, state, head_length, close_after, waiting, kind, line_length, azure;
  int64_t left, size;             // of the body: still to come; in all
  int64_t last;                   // of a resumable upload: the last byte that came
  char head[HEAD_MAX + 1], line[64], method[8], target[8192], location[256];
  const char *body;
  void *ssl;
} conn;
typedef struct { int fd; uint32_t generation; double at; conn *c; } due;

static long n_put, n_part, n_get, n_post, n_delete, n_head, n_list, n_connections;
static int64_t n_bytes;
static int peak, poller, remembering;
static double delay;
static due *queue; static size_t queue_head, queue_tail, queue_room = 1 << 20;
static uint32_t generations[65536];
static char bytes[1 << 20];

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

// TLS: the few calls of OpenSSL 1.1 and 3 that are needed

static void *tls;
static void *(*ssl_new)(void *), (*ssl_free)(void *), (*ssl_accept_state)(void *);
static void (*clear_errors)(void);
static int (*ssl_fd)(void *, int), (*ssl_read)(void *, void *, int), (*ssl_write)(void *, const void *, int), (*ssl_error)(void *, int);

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) { fprintf(stderr, "sink: OpenSSL lacks %s\n", name); exit(1); }
  return found;
}

static void tls_start(const char *certificate, const char *key) {
  const char *names[] = {"libssl.so.3", "libssl.so.1.1", "libssl.so"};
  void *library = 0;
  for (int i = 0; i < 3 && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
  if (!library) { fprintf(stderr, "sink: no OpenSSL here (libssl.so.3)\n"); exit(3); }
  void *(*method)(void) = symbol(library, "TLS_server_method"), *(*new)(void *) = symbol(library, "SSL_CTX_new");
  int (*chain)(void *, const char *) = symbol(library, "SSL_CTX_use_certificate_chain_file");
  int (*private)(void *, const char *, int) = symbol(library, "SSL_CTX_use_PrivateKey_file");
  ssl_new = symbol(library, "SSL_new"); ssl_free = symbol(library, "SSL_free"); ssl_accept_state = symbol(library, "SSL_set_accept_state");
  ssl_fd = symbol(library, "SSL_set_fd"); ssl_read = symbol(library, "SSL_read"); ssl_write = symbol(library, "SSL_write");
  ssl_error = symbol(library, "SSL_get_error"); clear_errors = symbol(library, "ERR_clear_error");
  tls = new(method());
  if (!tls || chain(tls, certificate) != 1 || private(tls, key, 1) != 1) { fprintf(stderr, "sink: cannot use this certificate and key\n"); exit(1); }
}

static ssize_t receive(conn *c, char *to, size_t room) { // as read(2); without TLS, a record at a time with it
  if (!c->ssl) return read(c->fd, to, room);
  clear_errors(); // of another connection
  int n = ssl_read(c->ssl, to, room);
  if (n > 0) return n;
  int why = ssl_error(c->ssl, n);
  if (why == 2 || why == 3) { errno = EAGAIN; return -1; } // SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE
  return 0;
}

static int transmit(conn *c, const char *from, size_t length) { // all of it: answers are short, but for lists
  while (length) {
    if (c->ssl) clear_errors();
    ssize_t n = c->ssl ? ssl_write(c->ssl, from, length) : write(c->fd, from, length);
    if (n > 0) { from += n; length -= n; continue; }
    int again = c->ssl ? ssl_error(c->ssl, n) == 3 : errno == EAGAIN;
    struct pollfd ready = {.fd = c->fd, .events = POLLOUT};
    if (!again || poll(&ready, 1, 10000) <= 0) return -1;
  }
  return 0;
}

static int drop(conn *c) {
  epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, 0);
  generations[c->fd & 65535]++;
  if (c->ssl) ssl_free(c->ssl);
  close(c->fd); free(c);
  return -1;
}

// What is remembered: names, sizes and times, sorted when a list is asked for

typedef struct { char *name; int64_t size; double time; } object;
static object *objects; static size_t n_objects, object_room, *slots, slot_count; static int sorted;

static size_t hash(const char *text) { size_t h = 1469598103934665603u; while (*text) h = (h ^ (unsigned char)*text++) * 1099511628211u; return h; }

static size_t *slot_of(const char *name) {
  size_t at = hash(name) & (slot_count - 1);
  while (slots[at] && strcmp(objects[slots[at] - 1].name, name)) at = (at + 1) & (slot_count - 1);
  return &slots[at];
}

static void index_again(void) {
  while (slot_count < n_objects * 2 + 1024) slot_count = slot_count ? slot_count * 2 : 4096;
  free(slots); slots = calloc(slot_count, sizeof *slots);
  for (size_t i = 0; i < n_objects; i++) *slot_of(objects[i].name) = i + 1;
}

static void unescape(char *text) {
  char *to = text; unsigned byte;
  for (; *text; text++) if (*text == '%' && sscanf(text + 1, "%2x", &byte) == 1) { *to++ = byte; text += 2; } else *to++ = *text;
  *to = 0;
}

static char *name_of(char *target) { // the key, or 0 for a request to the bucket; cuts the query off
  strtok(target, "?"); unescape(target);
  char *key = strchr(target + 1, '/');
  return key && key[1] ? key + 1 : 0;
}

static void keep(conn *c) {
  char *name = name_of(c->target);
  if (!name) return;
  if (n_objects * 2 >= slot_count) index_again();
  size_t *slot = slot_of(name);
  if (!*slot) {
    if (n_objects == object_room) objects = realloc(objects, (object_room = object_room * 2 + 1024) * sizeof *objects);
    objects[n_objects] = (object){.name = strdup(name)}; *slot = ++n_objects; sorted = 0;
  }
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
  objects[*slot - 1].size = c->size; objects[*slot - 1].time = t.tv_sec + t.tv_nsec / 1e9;
}

static int by_name(const void *a, const void *b) { return strcmp(((object *)a)->name, ((object *)b)->name); }

static char *argument(const char *query, const char *name) { // of a query, unescaped; "" if it is not there
  static char value[4096]; size_t length = strlen(name); value[0] = 0;
  for (const char *p = strchr(query, '?'); p; p = strchr(p + 1, '&'))
    if (!strncmp(p + 1, name, length) && p[1 + length] == '=') { snprintf(value, sizeof value, "%.*s", (int)strcspn(p + 2 + length, "& "), p + 2 + length); unescape(value); }
  return value;
}

static char *listing(const char *query) { // up to 1,000 names below a prefix; no delimiter: nobody here asks for one
  static char page[1 << 20]; char prefix[4096]; char *to = page, *end = page + sizeof page - 8192;
  strcpy(prefix, argument(query, "prefix"));
  char *after = argument(query, "continuation-token");
  if (!*after) after = argument(query, "marker");
  if (!sorted) { qsort(objects, n_objects, sizeof *objects, by_name); index_again(); sorted = 1; }
  size_t low = 0, high = n_objects; const char *from = *after ? after : prefix;
  while (low < high) { size_t middle = (low + high) / 2; if (strcmp(objects[middle].name, from) < 0) low = middle + 1; else high = middle; }
  if (*after && low < n_objects && !strcmp(objects[low].name, after)) low++;
  int count = 0; const char *last = "";
  to += sprintf(to, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>%s</Prefix><MaxKeys>1000</MaxKeys>", prefix);
  for (; low < n_objects && count < 1000 && to < end && !strncmp(objects[low].name, prefix, strlen(prefix)); low++, count++) {
    char date[32]; time_t t = objects[low].time; struct tm tm; gmtime_r(&t, &tm); strftime(date, sizeof date, "%FT%T", &tm);
    to += sprintf(to, "<Contents><Key>%s</Key><LastModified>%s.%03dZ</LastModified><ETag>&quot;9b2cf535f27731c974343645a3985328&quot;</ETag><Size>%lld</Size><StorageClass>STANDARD</StorageClass></Contents>",
                  last = objects[low].name, date, (int)((objects[low].time - t) * 1000), (long long)objects[low].size);
  }
  int more = low < n_objects && !strncmp(objects[low].name, prefix, strlen(prefix));
  to += sprintf(to, "<KeyCount>%d</KeyCount><IsTruncated>%s</IsTruncated>", count, more ? "true" : "false");
  if (more) to += sprintf(to, "<NextContinuationToken>%s</NextContinuationToken><NextMarker>%s</NextMarker>", last, last);
  strcpy(to, "</ListBucketResult>");
  return page;
}

// Answers

#define XML "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
#define NS " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
static const char *CREATED = XML "<InitiateMultipartUploadResult" NS "<Bucket>b</Bucket><Key>k</Key><UploadId>U1</UploadId></InitiateMultipartUploadResult>";
static const char *COMPLETED = XML "<CompleteMultipartUploadResult" NS "<Location>http://l</Location><Bucket>b</Bucket><Key>k</Key><ETag>\"3858f62230ac3c915f300c664312c11f-9\"</ETag></CompleteMultipartUploadResult>";
static const char *EMPTY = XML "<ListBucketResult" NS "<Name>b</Name><Prefix></Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>";
static const char *COPIED = XML "<CopyPartResult" NS "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"9b2cf535f27731c974343645a3985328\"</ETag></CopyPartResult>";
static const char *DELETED = XML "<DeleteResult" NS "</DeleteResult>";

static const char *INSERTED = "{\"kind\":\"storage#object\",\"name\":\"k\",\"bucket\":\"b\",\"generation\":\"1\",\"size\":\"1\"}"; // Cloud Storage's JSON API

static const char *AZURE_EMPTY = XML "<EnumerationResults ServiceEndpoint=\"http://l/\" ContainerName=\"b\"><Blobs/><NextMarker/></EnumerationResults>";
#define AZURE "x-ms-version: 2021-12-02\r\nx-ms-request-id: R\r\nx-ms-request-server-encrypted: true\r\n"

static const char *date(void) { // now, as HTTP writes it: clients compare it with their own clock
  static char text[40]; static time_t of; time_t t = time(0); struct tm tm;
  if (t != of) { of = t; gmtime_r(&t, &tm); strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm); }
  return text;
}

static char *stats(void) {
  static char text[512];
  snprintf(text, sizeof text, "{\"put\":%ld,\"part\":%ld,\"get\":%ld,\"post\":%ld,\"delete\":%ld,\"head\":%ld,\"list\":%ld,\"connections\":%ld,\"peak_in_flight\":%d,\"body_bytes\":%lld}\n",
           n_put, n_part, n_get, n_post, n_delete, n_head, n_list, n_connections, peak, (long long)n_bytes);
  n_put = n_part = n_get = n_post = n_delete = n_head = n_list = n_connections = 0; n_bytes = 0; peak = 0;
  return text;
}

static int reply(conn *c) {
  char out[4096]; int head = !strcmp(c->method, "HEAD");
  const char *body = c->kind == STATS ? stats() : c->kind == LISTING ? listing(c->target) : c->body ? c->body : "";
  size_t length = c->kind == FOUND ? (size_t)c->size : head ? 0 : strlen(body);
  const char *status = c->kind == NOT_FOUND ? "404 Not Found" : c->kind == GOES_ON ? "308 Resume Incomplete" : strcmp(c->method, "DELETE") ? "200 OK" : "204 No Content";
  if (c->azure && c->kind == ANSWER) status = !strcmp(c->method, "PUT") ? "201 Created" : !strcmp(c->method, "DELETE") ? "202 Accepted" : status;
  int n = snprintf(out, sizeof out, "HTTP/1.1 %s\r\nx-amz-request-id: R\r\nDate: %s\r\n", status, date());
  if (c->azure) n += snprintf(out + n, sizeof out - n, AZURE "%s", c->kind == NOT_FOUND ? "x-ms-error-code: BlobNotFound\r\n" : "x-ms-blob-type: BlockBlob\r\n");
  if (c->kind == NOT_FOUND) n += snprintf(out + n, sizeof out - n, "Content-Length: 0\r\n");
  else if (c->kind == GOES_ON) n += snprintf(out + n, sizeof out - n, "Content-Length: 0\r\nRange: bytes=0-%lld\r\n", (long long)c->last);
  else if (status[0] == '2' && strncmp(status, "204", 3))
    n += snprintf(out + n, sizeof out - n, "Content-Length: %zu\r\nContent-Type: application/%s\r\nETag: \"9b2cf535f27731c974343645a3985328\"\r\nLast-Modified: %s\r\n", length, body[0] == '{' ? "json" : "xml", date());
  if (c->kind == SESSION) n += snprintf(out + n, sizeof out - n, "Location: %s\r\n", c->location);
  n += snprintf(out + n, sizeof out - n, "\r\n");
  c->state = HEAD; c->head_length = 0; c->waiting = 0;
  int whole = !head && c->kind != NOT_FOUND && c->kind != GOES_ON && n + strlen(body) < sizeof out;
  if (whole) { strcpy(out + n, body); n += strlen(body); }
  if (transmit(c, out, n) || (!whole && !head && c->kind == LISTING && transmit(c, body, strlen(body))) || c->close_after) return drop(c);
  return 0;
}

static int finish(conn *c) {
  if (remembering && !strcmp(c->method, "PUT") && !strstr(c->target, "partNumber") && !strstr(c->target, "comp=block&")) keep(c);
  if (delay <= 0 || c->kind == STATS) return reply(c);
  c->waiting = 1; c->state = HEAD;
  queue[queue_tail++ % queue_room] = (due){c->fd, generations[c->fd & 65535], now() + delay, c};
  if ((int)(queue_tail - queue_head) > peak) peak = queue_tail - queue_head;
  return 0;
}

// Requests

static char *header(char *head, const char *name) { // its value, or 0
  size_t n = strlen(name);
  for (char *p = strstr(head, "\r\n"); p; p = strstr(p + 2, "\r\n"))
    if (!strncasecmp(p + 2, name, n) && p[2 + n] == ':') { p += 3 + n; while (*p == ' ') p++; return p; }
  return 0;
}

static void look_up(conn *c) { // HEAD: of the bucket or of a key
  char copy[sizeof c->target]; char *name = name_of(strcpy(copy, c->target));
  c->kind = name ? NOT_FOUND : ANSWER;
  if (name && remembering && slot_count && *slot_of(name)) { c->kind = FOUND; c->size = objects[*slot_of(name) - 1].size; }
}

static void insert(conn *c) { // in one request, or in a session that takes what comes
  char *range = header(c->head, "content-range"), *host = header(c->head, "host"); long long total = -1;
  n_put++; c->body = INSERTED;
  if (!strcmp(c->method, "PUT")) {
    n_put--; n_part++; c->last = -1;
    if (range && sscanf(range, "bytes %*[0-9]-%lld/%lld", (long long *)&c->last, &total) >= 1 && c->last + 1 != total) c->kind = GOES_ON;
  } else if (strstr(c->target, "uploadType=resumable")) {
    n_put--; n_post++; c->kind = SESSION;
    snprintf(c->location, sizeof c->location, "http%s://%.*s/upload/storage/v1/b/b/o?uploadType=resumable&upload_id=U1", tls ? "s" : "", host ? (int)strcspn(host, "\r") : 0, host ? host : "");
  }
}

static int of_cloud_storage(conn *c) { // its JSON API: uploads, lists that are empty, buckets that are there and objects that are not
  size_t path = strcspn(c->target, "?");
  if (!strncmp(c->target, "/upload/storage/v1/", 19)) { insert(c); return 1; }
  if (strncmp(c->target, "/storage/v1/", 12)) return 0;
  if (!strcmp(c->method, "POST")) { n_post++; c->body = INSERTED; return 1; } // a compose
  n_get++;
  if (path > 2 && !strncmp(c->target + path - 2, "/o", 2)) { n_list++; c->body = "{}"; }
  else if (strstr(c->target, "/o/")) c->kind = NOT_FOUND;
  else c->body = INSERTED;
  return 1;
}

static int of_azure(conn *c) { // uploads, lists that are empty, and blobs that are there if they are remembered
  c->azure = !strncmp(c->target, "/devstoreaccount1/", 18);
  if (!c->azure) return 0;
  if (!strcmp(c->method, "PUT")) { if (strstr(c->target, "comp=block&")) n_part++; else n_put++; }
  else if (!strcmp(c->method, "GET")) { n_get++; if (strstr(c->target, "comp=list")) { n_list++; c->body = AZURE_EMPTY; } else c->kind = NOT_FOUND; }
  else if (!strcmp(c->method, "HEAD")) { n_head++; look_up(c); }
  else if (!strcmp(c->method, "DELETE")) n_delete++; else n_post++;
  return 1;
}

static void classify(conn *c) {
  char *query = strchr(c->target, '?'); c->body = 0; c->kind = ANSWER;
  if (of_azure(c) || of_cloud_storage(c)) return;
  if (!strcmp(c->method, "PUT")) {
    if (query && strstr(query, "partNumber")) { n_part++; if (header(c->head, "x-amz-copy-source")) c->body = COPIED; } else n_put++;
  } else if (!strcmp(c->method, "POST")) {
    n_post++; c->body = query && strstr(query, "uploadId=") ? COMPLETED : query && strstr(query, "delete") ? DELETED : CREATED;
  } else if (!strcmp(c->method, "GET")) {
    if (!strcmp(c->target, "/_stats")) { c->kind = STATS; return; }
    n_get++; n_list++; c->body = EMPTY; if (remembering) c->kind = LISTING;
  } else if (!strcmp(c->method, "HEAD")) { n_head++; look_up(c);
  } else if (!strcmp(c->method, "DELETE")) n_delete++;
}

static int head_done(conn *c) {
  char *value; c->left = 0; c->target[0] = 0;
  sscanf(c->head, "%7s %8191s", c->method, c->target);
  classify(c);
  c->close_after = (value = header(c->head, "connection")) && !strncasecmp(value, "close", 5);
  int chunked = (value = header(c->head, "transfer-encoding")) && !strncasecmp(value, "chunked", 7);
  if ((value = header(c->head, "content-length"))) c->left = atoll(value);
  if (c->kind != FOUND) c->size = (value = header(c->head, "x-amz-decoded-content-length")) ? atoll(value) : c->left;
  const char *go_on = "HTTP/1.1 100 Continue\r\n\r\n";
  if (header(c->head, "expect") && (chunked || c->left) && transmit(c, go_on, strlen(go_on))) return drop(c);
  c->line_length = 0; c->state = chunked ? CHUNK_SIZE : BODY;
  return chunked || c->left ? 0 : finish(c);
}

static int feed(conn *c, char *p, ssize_t n) { // what has come in; -1: the connection is gone
  while (n > 0) {
    if (c->state == HEAD) {
      if (c->waiting) return 0;
      int scan = c->head_length > 3 ? c->head_length - 3 : 0, take = n < HEAD_MAX - c->head_length ? n : HEAD_MAX - c->head_length;
      if (take <= 0) return drop(c);
      memcpy(c->head + c->head_length, p, take); c->head[c->head_length + take] = 0;
      char *end = memmem(c->head + scan, c->head_length + take - scan, "\r\n\r\n", 4);
      if (!end) { c->head_length += take; return 0; }
      int used = (int)(end + 4 - c->head) - c->head_length; end[2] = 0; p += used; n -= used; c->head_length = 0;
      if (head_done(c)) return -1;
    } else if (c->state == BODY || c->state == CHUNK_DATA) {
      int64_t taken = n < c->left ? n : c->left; c->left -= taken; p += taken; n -= taken; n_bytes += taken;
      if (c->left) continue;
      if (c->state == CHUNK_DATA) { c->state = CHUNK_END; c->line_length = 0; } else if (finish(c)) return -1;
    } else { // a line of the chunked encoding
      char ch = *p++; n--;
      if (ch != '\n') { if (c->line_length < 63) c->line[c->line_length++] = ch; continue; }
      c->line[c->line_length] = 0; if (c->line_length && c->line[c->line_length - 1] == '\r') c->line[--c->line_length] = 0;
      if (c->state == CHUNK_END) c->state = CHUNK_SIZE;
      else if (c->state == CHUNK_SIZE) { c->left = strtoll(c->line, 0, 16); c->state = c->left ? CHUNK_DATA : TRAILER; }
      else if (!c->line_length && finish(c)) return -1;
      c->line_length = 0;
    }
  }
  return 0;
}

static void greet(int listener) {
  int one = 1, fd = accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  conn *c = calloc(1, sizeof *c); c->fd = fd; n_connections++;
  if (tls) { c->ssl = ssl_new(tls); ssl_fd(c->ssl, fd); ssl_accept_state(c->ssl); }
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void serve(conn *c) { // up to 8 MiB or 512 records, then it is the next one's turn
  for (int turn = 0; turn < (c->ssl ? 512 : 8); turn++) {
    ssize_t n = receive(c, bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) { drop(c); return; }
    if (feed(c, bytes, n) || (!c->ssl && n < (ssize_t)sizeof bytes)) return;
  }
}

static int open_port(int port) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) { perror("sink: bind"); exit(1); }
  return listener;
}

int main(int argc, char **argv) {
  if (argc < 2) { fprintf(stderr, "usage: sink PORT [DELAY_MS [CERTIFICATE KEY]] [remember]\n"); return 2; }
  signal(SIGPIPE, SIG_IGN); prctl(PR_SET_PDEATHSIG, SIGKILL);
  remembering = !strcmp(argv[argc - 1], "remember"); argc -= remembering;
  delay = argc > 2 ? atof(argv[2]) / 1000 : 0;
  if (argc > 4) tls_start(argv[3], argv[4]);
  queue = malloc(sizeof(due) * queue_room); poller = epoll_create1(0);
  int listener = open_port(atoi(argv[1]));
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = 0}, events[256];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    double until = queue_head != queue_tail ? queue[queue_head % queue_room].at - now() : -1;
    int wait = queue_head == queue_tail ? -1 : until <= 0 ? 0 : (int)(until * 1000) + 1;
    int n = epoll_wait(poller, events, 256, wait);
    for (int i = 0; i < n; i++) if (events[i].data.ptr) serve(events[i].data.ptr); else greet(listener);
    for (double t = now(); queue_head != queue_tail && queue[queue_head % queue_room].at <= t;) {
      due d = queue[queue_head++ % queue_room];
      if (generations[d.fd & 65535] == d.generation) reply(d.c);
    }
  }
}
