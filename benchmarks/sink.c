// sink: an S3-shaped sink that reads every request body to its end and throws it away, so that what
// a client costs shows up and what a server costs does not. Answers after a fixed delay, to stand in for
// a far store. One thread, epoll. Build: cc -O2 -o sink sink.c; run: sink PORT [DELAY_MS].
// GET /_stats prints counts since start and resets them.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };
#define HMAX 65536
typedef struct conn {
  int fd, state, nh, close_after, waiting;
  int64_t left;
  char head[HMAX + 1];
  char line[64]; int nl;
  const char *body; char etag; char method[8]; int kind;
} conn;
typedef struct { int fd; uint32_t gen; double at; conn *c; } due;

static long n_put, n_part, n_get, n_post, n_del, n_head, n_conn, n_listed; static int64_t n_bytes; static int peak, open_now;
static double delay; static due *q; static size_t qh, qt, qcap = 1 << 20; static uint32_t gens[65536];
static char rbuf[1 << 20]; static int ep;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static const char *INIT = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><InitiateMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket><Key>k</Key><UploadId>U1</UploadId></InitiateMultipartUploadResult>";
static const char *DONE = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CompleteMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Location>http://l</Location><Bucket>b</Bucket><Key>k</Key><ETag>\"3858f62230ac3c915f300c664312c11f-9\"</ETag></CompleteMultipartUploadResult>";
static const char *LIST = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix></Prefix><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>";
static const char *COPY = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CopyPartResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"9b2cf535f27731c974343645a3985328\"</ETag></CopyPartResult>";

static void drop(conn *c) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0); gens[c->fd & 65535]++; close(c->fd); free(c); open_now--; }

static const char *date(void) { // now, as HTTP writes it: clients compare it with their own clock
  static char text[40]; static time_t of; time_t t = time(0); struct tm tm;
  if (t != of) { of = t; gmtime_r(&t, &tm); strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm); }
  return text;
}

static int reply(conn *c) {
  char out[4096]; int n; const char *b = c->body ? c->body : ""; int head = !strcmp(c->method, "HEAD");
  char stats[512];
  if (c->kind == 9) {
    snprintf(stats, sizeof stats, "{\"put\":%ld,\"part\":%ld,\"get\":%ld,\"post\":%ld,\"delete\":%ld,\"head\":%ld,\"list\":%ld,\"connections\":%ld,\"peak_in_flight\":%d,\"body_bytes\":%lld}\n", n_put, n_part, n_get, n_post, n_del, n_head, n_listed, n_conn, peak, (long long)n_bytes);
    n_put = n_part = n_get = n_post = n_del = n_head = n_listed = n_conn = 0; n_bytes = 0; peak = 0; b = stats;
  }
  if (c->kind == 404)
    n = snprintf(out, sizeof out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nx-amz-request-id: R\r\n\r\n");
  else
    n = snprintf(out, sizeof out, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nContent-Type: application/xml\r\nETag: \"9b2cf535f27731c974343645a3985328\"\r\nx-amz-request-id: R\r\nDate: %s\r\n\r\n%s",
               !strcmp(c->method, "DELETE") ? "204 No Content" : "200 OK", head ? 0 : strlen(b), date(), head ? "" : b);
  if (!strcmp(c->method, "DELETE")) n = snprintf(out, sizeof out, "HTTP/1.1 204 No Content\r\nx-amz-request-id: R\r\n\r\n");
  c->state = HEAD; c->nh = 0; c->waiting = 0;
  if (write(c->fd, out, n) != n || c->close_after) { drop(c); return -1; }
  return 0;
}

static int finish(conn *c) {
  if (delay <= 0 || c->kind == 9) return reply(c);
  c->waiting = 1; q[qt++ % qcap] = (due){c->fd, gens[c->fd & 65535], now() + delay, c};
  if ((int)(qt - qh) > peak) peak = qt - qh;
  return 0;
}

static char *find(char *h, const char *name) { // header value, or 0
  size_t n = strlen(name);
  for (char *p = strstr(h, "\r\n"); p; p = strstr(p + 2, "\r\n")) if (!strncasecmp(p + 2, name, n) && p[2 + n] == ':') { p += 3 + n; while (*p == ' ') p++; return p; }
  return 0;
}

static int head_done(conn *c) {
  char *h = c->head, target[8192] = ""; sscanf(h, "%7s %8191s", c->method, target);
  c->body = 0; c->kind = 0; c->left = 0; c->close_after = 0;
  char *v, *qs = strchr(target, '?');
  if (!strcmp(c->method, "PUT")) { if (qs && strstr(qs, "partNumber")) { n_part++; if (find(h, "x-amz-copy-source")) c->body = COPY; } else n_put++; }
  else if (!strcmp(c->method, "POST")) { n_post++; c->body = (qs && strstr(qs, "uploadId=")) ? DONE : INIT; if (qs && strstr(qs, "delete")) c->body = "<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"></DeleteResult>"; }
  else if (!strcmp(c->method, "GET")) { if (!strcmp(target, "/_stats")) c->kind = 9; else { n_get++; n_listed++; c->body = LIST; } }
  else if (!strcmp(c->method, "HEAD")) { n_head++; c->kind = 404; for (char *p = target + 1; *p; p++) ; if (!strchr(target + 1, '/') ) c->kind = 0; }
  else if (!strcmp(c->method, "DELETE")) n_del++;
  if ((v = find(h, "connection")) && !strncasecmp(v, "close", 5)) c->close_after = 1;
  int chunked = (v = find(h, "transfer-encoding")) && !strncasecmp(v, "chunked", 7);
  if ((v = find(h, "content-length"))) c->left = atoll(v);
  if ((v = find(h, "expect")) && (chunked || c->left)) { const char *k = "HTTP/1.1 100 Continue\r\n\r\n"; if (write(c->fd, k, strlen(k)) < 0) { drop(c); return -1; } }
  if (chunked) { c->state = CHUNK_SIZE; c->nl = 0; return 0; }
  if (c->left) { c->state = BODY; return 0; }
  return finish(c);
}

static int feed(conn *c, char *p, ssize_t n) {
  while (n > 0) {
    if (c->state == HEAD) {
      if (c->waiting) return 0;
      int scan = c->nh > 3 ? c->nh - 3 : 0, take = n < HMAX - c->nh ? n : HMAX - c->nh;
      if (take <= 0) { drop(c); return -1; }
      memcpy(c->head + c->nh, p, take); c->head[c->nh + take] = 0;
      char *e = memmem(c->head + scan, c->nh + take - scan, "\r\n\r\n", 4);
      if (!e) { c->nh += take; return 0; }
      int used = (int)(e + 4 - c->head) - c->nh; e[2] = 0; p += used; n -= used; c->nh = 0;
      if (head_done(c)) return -1;
    } else if (c->state == BODY || c->state == CHUNK_DATA) {
      int64_t t = n < c->left ? n : c->left; c->left -= t; p += t; n -= t; n_bytes += t;
      if (!c->left) { if (c->state == CHUNK_DATA) { c->state = CHUNK_END; c->nl = 0; } else if (finish(c)) return -1; else if (c->waiting) c->state = HEAD; }
    } else { // line states
      char ch = *p++; n--;
      if (ch != '\n') { if (c->nl < 63) c->line[c->nl++] = ch; continue; }
      c->line[c->nl] = 0; if (c->nl && c->line[c->nl - 1] == '\r') c->line[--c->nl] = 0;
      if (c->state == CHUNK_END) { c->state = CHUNK_SIZE; }
      else if (c->state == CHUNK_SIZE) { c->left = strtoll(c->line, 0, 16); c->state = c->left ? CHUNK_DATA : TRAILER; }
      else if (!c->nl) { if (finish(c)) return -1; if (c->waiting) c->state = HEAD; }
      c->nl = 0;
    }
  }
  return 0;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  int port = argc > 1 ? atoi(argv[1]) : 19000; delay = argc > 2 ? atof(argv[2]) / 1000 : 0;
  q = malloc(sizeof(due) * qcap); ep = epoll_create1(0);
  int ls = socket(AF_INET, SOCK_STREAM, 0), one = 1; setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(ls, (void *)&a, sizeof a) || listen(ls, 4096)) { perror("bind"); return 1; }
  struct epoll_event ev = {.events = EPOLLIN, .data.ptr = 0}, evs[256]; epoll_ctl(ep, EPOLL_CTL_ADD, ls, &ev);
  for (;;) {
    int wait = -1; if (qh != qt) { double d = q[qh % qcap].at - now(); wait = d <= 0 ? 0 : (int)(d * 1000) + 1; }
    int n = epoll_wait(ep, evs, 256, wait);
    for (int i = 0; i < n; i++) {
      conn *c = evs[i].data.ptr;
      if (!c) { int fd = accept4(ls, 0, 0, SOCK_NONBLOCK); if (fd < 0) continue; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        int fl = fcntl(fd, F_GETFL); (void)fl; c = calloc(1, sizeof *c); c->fd = fd; n_conn++; open_now++; ev.events = EPOLLIN; ev.data.ptr = c; epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev); continue; }
      for (int k = 0; k < 8; k++) { ssize_t r = read(c->fd, rbuf, sizeof rbuf); if (r < 0 && (errno == EAGAIN || errno == EINTR)) break; if (r <= 0) { drop(c); break; } if (feed(c, rbuf, r)) break; if (r < (ssize_t)sizeof rbuf) break; }
    }
    double t = now(); while (qh != qt && q[qh % qcap].at <= t) { due d = q[qh++ % qcap]; if (gens[d.fd & 65535] == d.gen) reply(d.c); }
  }
}
