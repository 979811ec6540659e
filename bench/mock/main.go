// The engine of the measurements: answers a chat completion from prepared bytes, or streams one at a steady
// pace. It takes the fake engine's command line, so that Modelyard can start it in the fake engine's place, and
// costs far less than whatever is measured in front of it.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An answer of about 800 bytes, in the shape and with the headers of llama.cpp's server.
var answer = plain(`{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"` +
	strings.Repeat("benchmark ", 24) + `"}}],"created":1750000000,"model":"m","system_fingerprint":"b1-mock",` +
	`"object":"chat.completion","usage":{"completion_tokens":24,"prompt_tokens":250,"total_tokens":274,` +
	`"prompt_tokens_details":{"cached_tokens":0}},"id":"chatcmpl-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","timings":` +
	`{"cache_n":0,"prompt_n":250,"prompt_ms":40.5,"prompt_per_token_ms":0.162,"prompt_per_second":6172.8,` +
	`"predicted_n":24,"predicted_ms":276.1,"predicted_per_token_ms":11.5,"predicted_per_second":86.9}}`)

const headers = "Server: llama.cpp\r\nAccess-Control-Allow-Origin: *\r\n"

var (
	healthy = plain(`{"status":"ok"}`)
	slots   = plain(`[]`)
	head    = []byte("HTTP/1.1 200 OK\r\n" + headers + "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	event   = chunk(`data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" token"}}],"created":1750000000,` +
		`"id":"chatcmpl-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","model":"m","system_fingerprint":"b1-mock",` +
		`"object":"chat.completion.chunk"}` + "\n\n")
	last = append(append(chunk(`data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1750000000,`+
		`"id":"chatcmpl-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","model":"m","object":"chat.completion.chunk"}`+"\n\n"),
		chunk("data: [DONE]\n\n")...), "0\r\n\r\n"...)
	pace time.Duration
)

func plain(body string) []byte {
	return []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Type: application/json; charset=utf-8\r\n"+
		"Content-Length: %d\r\n\r\n%s", headers, len(body), body))
}

func chunk(data string) []byte {
	return []byte(fmt.Sprintf("%x\r\n%s\r\n", len(data), data))
}

func main() {
	flag.String("m", "", "the fake engine's module; not used")
	flag.String("model", "", "not used")
	flag.String("memory", "", "not used")
	script := flag.String("script", "{}", "only tokens_per_second is used")
	address := flag.String("address", "127.0.0.1:0", "unix:/path or host:port")
	flag.Parse()
	var options struct {
		Rate float64 `json:"tokens_per_second"`
	}
	if err := json.Unmarshal([]byte(*script), &options); err != nil {
		log.Fatalf("-script: %v", err)
	}
	if options.Rate == 0 {
		options.Rate = 20
	}
	pace = time.Duration(float64(time.Second) / options.Rate)
	network, where := "tcp", *address
	if path, isUnix := strings.CutPrefix(where, "unix:"); isUnix {
		network, where = "unix", path
	}
	listener, err := net.Listen(network, where)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		listener.Close()
		os.Exit(0)
	}()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go serve(blocking(connection))
	}
}

// socket reads and writes with blocking calls, as the threads of llama.cpp's server do. (A socket in Go's poller
// wakes it whenever the peer has read from a Unix socket, and the reader pays for that.)
type socket int

// blocking takes the connection out of Go's poller.
func blocking(connection net.Conn) socket {
	defer connection.Close()
	raw, err := connection.(syscall.Conn).SyscallConn()
	if err != nil {
		log.Fatal(err)
	}
	copied := -1
	if failed := raw.Control(func(fd uintptr) { copied, err = syscall.Dup(int(fd)) }); failed != nil || err != nil {
		log.Fatal(failed, err)
	}
	if err := syscall.SetNonblock(copied, false); err != nil {
		log.Fatal(err)
	}
	return socket(copied)
}

func (s socket) Read(into []byte) (int, error) {
	n, err := syscall.Read(int(s), into)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

func (s socket) Write(data []byte) (int, error) {
	for done := 0; done < len(data); {
		n, err := syscall.Write(int(s), data[done:])
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(data), nil
}

func (s socket) Close() error { return syscall.Close(int(s)) }

// serve answers one connection's requests in order. Requests have a Content-Length or no body.
func serve(connection socket) {
	defer connection.Close()
	buffer := make([]byte, 0, 64<<10)
	for {
		request, rest, err := read(connection, buffer)
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(request, []byte("GET /slots")):
			_, err = connection.Write(slots)
		case bytes.HasPrefix(request, []byte("GET ")):
			_, err = connection.Write(healthy)
		case bytes.Contains(request, []byte(`"stream":true`)):
			err = stream(connection, tokens(request))
		default:
			_, err = connection.Write(answer)
		}
		if err != nil {
			return
		}
		buffer = buffer[:copy(buffer[:cap(buffer)], rest)]
	}
}

// read returns one whole request and the bytes after it; buffer holds what was read before.
func read(connection socket, buffer []byte) (request, rest []byte, err error) {
	for {
		if end := bytes.Index(buffer, []byte("\r\n\r\n")); end >= 0 {
			if size := end + 4 + length(buffer[:end+2]); len(buffer) >= size {
				return buffer[:size], buffer[size:], nil
			}
		}
		if len(buffer) == cap(buffer) {
			return nil, nil, fmt.Errorf("request is larger than %d bytes", cap(buffer))
		}
		n, err := connection.Read(buffer[len(buffer):cap(buffer)])
		if err != nil {
			return nil, nil, err
		}
		buffer = buffer[:len(buffer)+n]
	}
}

// length is the request's Content-Length, 0 when it has none.
func length(head []byte) int {
	for _, line := range bytes.Split(head, []byte("\r\n")) {
		name, value, found := bytes.Cut(line, []byte(":"))
		if found && bytes.EqualFold(name, []byte("content-length")) {
			n, _ := strconv.Atoi(string(bytes.TrimSpace(value)))
			return n
		}
	}
	return 0
}

// tokens is the request's max_tokens, 16 when it names none.
func tokens(request []byte) int {
	_, after, found := bytes.Cut(request, []byte(`"max_tokens":`))
	if !found {
		return 16
	}
	end := bytes.IndexAny(after, ",}")
	if n, err := strconv.Atoi(string(bytes.TrimSpace(after[:max(end, 0)]))); err == nil {
		return n
	}
	return 16
}

// stream writes count events, one per pace, each with a write of its own.
func stream(connection socket, count int) error {
	if _, err := connection.Write(head); err != nil {
		return err
	}
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for range make([]struct{}, count) {
		<-ticker.C
		if _, err := connection.Write(event); err != nil {
			return err
		}
	}
	_, err := connection.Write(last)
	return err
}
