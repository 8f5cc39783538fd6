// A closed-loop load generator for etcd's gRPC API: the counterpart of spec/bench/load.c, with the same operations,
// the same output, and Debian's client packages.
//
//	etcd_load put|get|fill|fanout|gap -to HOST:PORT,... [-cert F -key F -ca F] [-clients N] [-seconds S] [-value N] [-keys N]
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io/ioutil"
	"math/rand"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"go.etcd.io/etcd/clientv3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

var (
	flags   = flag.NewFlagSet("etcd_load", flag.ExitOnError)
	to      = flags.String("to", "127.0.0.1:2379", "")
	cert    = flags.String("cert", "", "")
	key     = flags.String("key", "", "")
	ca      = flags.String("ca", "", "")
	clients = flags.Int("clients", 64, "")
	seconds = flags.Float64("seconds", 5, "")
	size    = flags.Int("value", 256, "")
	keys    = flags.Int("keys", 100000, "")
	conns   = flags.Int("connections", 0, "gRPC connections; 0: one for each client, at most 100")
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd_load:", err)
		os.Exit(1)
	}
}

func tlsConfig() *tls.Config {
	if *ca == "" {
		return nil
	}
	pem, err := ioutil.ReadFile(*ca)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	check(err)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
}

func scheme(addr string) string {
	if *ca != "" {
		return "https://" + addr
	}
	return "http://" + addr
}

func dial(endpoints []string) *clientv3.Client {
	urls := []string{}
	for _, e := range endpoints {
		urls = append(urls, scheme(e))
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, TLS: tlsConfig(), DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()}})
	check(err)
	return c
}

// CLOCK_MONOTONIC in microseconds, to be compared with other processes.
func monotonic() int64 {
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Sec*1000000 + ts.Nsec/1000
}

func value(n uint64) string {
	return fmt.Sprintf("%020d", n) + strings.Repeat("x", *size-20)
}

func report(samples []int64, errors int64, took float64) {
	sort.Slice(samples, func(i, j int) bool { return samples[i] < samples[j] })
	pct := func(p float64) int64 {
		if len(samples) == 0 {
			return 0
		}
		return samples[int(float64(len(samples)-1)*p)] / 1000
	}
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	cpu := float64(usage.Utime.Sec+usage.Stime.Sec) + float64(usage.Utime.Usec+usage.Stime.Usec)/1e6
	fmt.Printf("{\"ops\":%d,\"errors\":%d,\"seconds\":%.3f,\"per_second\":%.1f,\"p50_us\":%d,\"p99_us\":%d,\"max_us\":%d,"+
		"\"client_cpu_seconds\":%.3f}\n", len(samples), errors, took, float64(len(samples))/took, pct(0.5), pct(0.99),
		pct(1), cpu)
}

func load(op string, endpoints []string) {
	n := *conns
	if n == 0 {
		n = *clients
		if n > 100 {
			n = 100
		}
	}
	pool := []*clientv3.Client{}
	for i := 0; i < n; i++ {
		pool = append(pool, dial([]string{endpoints[i%len(endpoints)]}))
	}
	counting := time.Now().Add(time.Duration(*seconds * 0.2 * 1e9))
	end := counting.Add(time.Duration(*seconds * 1e9))
	if op == "fill" {
		counting = time.Now()
	}
	var filled int64
	results := make([][]int64, *clients)
	var errors int64
	var wg sync.WaitGroup
	for i := 0; i < *clients; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			random := rand.New(rand.NewSource(int64(i)))
			c := pool[i%n]
			for time.Now().Before(end) {
				number := random.Intn(*keys)
				if op == "fill" {
					number = int(atomic.AddInt64(&filled, 1)) - 1
					if number >= *keys {
						return
					}
				}
				k := fmt.Sprintf("bench/%08d", number)
				began := time.Now()
				var err error
				if op != "get" {
					_, err = c.Put(context.Background(), k, value(random.Uint64()))
				} else {
					_, err = c.Get(context.Background(), k)
				}
				if err != nil {
					atomic.AddInt64(&errors, 1)
				} else if began.After(counting) {
					results[i] = append(results[i], int64(time.Since(began)))
				}
			}
		}(i)
	}
	wg.Wait()
	all := []int64{}
	for _, r := range results {
		all = append(all, r...)
	}
	if op == "fill" && filled < int64(*keys) {
		errors += int64(*keys) - filled
	}
	report(all, errors, time.Since(counting).Seconds())
}

func fanout(endpoints []string) {
	n := *clients
	if n > 100 {
		n = 100
	}
	pool := []*clientv3.Client{}
	for i := 0; i < n; i++ {
		pool = append(pool, dial([]string{endpoints[i%len(endpoints)]}))
	}
	seen := make(chan string, 2**clients)
	for i := 0; i < *clients; i++ {
		// A context of its own gives each watcher a stream of its own, as a client of its own would have.
		ctx := context.WithValue(context.Background(), "n", i)
		w := clientv3.NewWatcher(pool[i%n]).Watch(ctx, "bench/fan", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-w
		go func() {
			for r := range w {
				for _, e := range r.Events {
					seen <- string(e.Kv.Value[:20])
				}
			}
		}()
	}
	samples := []int64{}
	end := time.Now().Add(time.Duration(*seconds * 1e9))
	for number := uint64(1); time.Now().Before(end); number++ {
		v := value(number)
		began := time.Now()
		go func() {
			_, err := pool[0].Put(context.Background(), "bench/fan", v)
			check(err)
		}()
		for left := *clients; left > 0; {
			if <-seen == v[:20] {
				left--
			}
		}
		samples = append(samples, int64(time.Since(began)))
	}
	report(samples, 0, *seconds)
}

func gap(endpoints []string) {
	end := time.Now().Add(time.Duration(*seconds * 1e9))
	for number, at := uint64(1), 0; time.Now().Before(end); number++ {
		began := monotonic()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		c := clientFor(endpoints[at%len(endpoints)])
		_, err := c.Put(ctx, "bench/gap", value(number))
		cancel()
		if err != nil {
			at++
			continue
		}
		fmt.Printf("ack %d %d\n", began, monotonic())
	}
	report(nil, 0, *seconds)
}

var byEndpoint = map[string]*clientv3.Client{}

func clientFor(endpoint string) *clientv3.Client {
	if byEndpoint[endpoint] == nil {
		byEndpoint[endpoint] = dial([]string{endpoint})
	}
	return byEndpoint[endpoint]
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: etcd_load put|get|fill|fanout|gap -to HOST:PORT,...")
		os.Exit(2)
	}
	check(flags.Parse(os.Args[2:]))
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(ioutil.Discard, ioutil.Discard, ioutil.Discard))
	endpoints := strings.Split(*to, ",")
	switch os.Args[1] {
	case "put", "get", "fill":
		load(os.Args[1], endpoints)
	case "fanout":
		fanout(endpoints)
	case "gap":
		for _, e := range endpoints {
			clientFor(e)
		}
		gap(endpoints)
	}
}
