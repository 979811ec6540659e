// The load: clients on kept connections in a closed loop, or streams whose events are counted. Prints one line
// of JSON. An answer other than a whole 200 is counted as broken and ends its client; when more than one client
// in twenty meets one, there is an error and no result: a fast refusal must not look like speed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

type result struct {
	Requests int     `json:"requests"`
	Events   int     `json:"events"`
	Broken   int     `json:"broken"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
}

// A client's share of the result.
type share struct {
	times  []time.Duration
	events int
	err    error
}

func main() {
	address := flag.String("address", "", "host:port to ask")
	clients := flag.Int("clients", 64, "connections")
	duration := flag.Duration("duration", 3*time.Second, "of the closed loop")
	streams := flag.Int("events", 0, "streams of so many tokens, one per client, in place of the closed loop")
	key := flag.String("key", "", "bearer token")
	model := flag.String("model", "m", "model to ask for")
	flag.Parse()

	request := prepare(*address, *key, *model, *streams)
	shares := make([]share, *clients)
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	var stop time.Time
	for i := range shares {
		ready.Add(1)
		done.Add(1)
		go func(own *share) {
			defer done.Done()
			connection, err := net.Dial("tcp", *address)
			ready.Done()
			if err != nil {
				own.err = err
				return
			}
			defer connection.Close()
			<-begin
			own.run(connection, request, stop, *streams > 0)
		}(&shares[i])
	}
	ready.Wait()
	start := time.Now()
	stop = start.Add(*duration)
	close(begin)
	done.Wait()
	report(shares, time.Since(start))
}

// prepare makes a request with a body of about 1.3 KB, as openai's client sends it.
func prepare(address, key, model string, tokens int) []byte {
	ending := `"temperature":0.7,"max_tokens":64}`
	if tokens > 0 {
		ending = fmt.Sprintf(`"temperature":0.7,"max_tokens":%d,"stream":true}`, tokens)
	}
	body := `{"model":"` + model + `","messages":[{"role":"system","content":"You are a helpful assistant."},` +
		`{"role":"user","content":"` + strings.Repeat("Tell me about it. ", 64) + `"}],` + ending
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: " + address + "\r\nAccept: application/json\r\n" +
		"Accept-Encoding: gzip, deflate\r\nUser-Agent: OpenAI/Python 2.0.0\r\nContent-Type: application/json\r\n"
	if key != "" {
		head += "Authorization: Bearer " + key + "\r\n"
	}
	return []byte(head + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// run asks until stop, or once when streaming.
func (own *share) run(connection net.Conn, request []byte, stop time.Time, streaming bool) {
	reader := bufio.NewReaderSize(connection, 16<<10)
	for {
		start := time.Now()
		if _, own.err = connection.Write(request); own.err != nil {
			return
		}
		var events int
		if events, own.err = answer(reader); own.err != nil {
			return
		}
		now := time.Now()
		own.times = append(own.times, now.Sub(start))
		own.events += events
		if streaming || now.After(stop) {
			return
		}
	}
}

// answer reads one whole answer and returns the number of its SSE events.
func answer(reader *bufio.Reader) (int, error) {
	status, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
		detail, _ := reader.Peek(reader.Buffered())
		return 0, fmt.Errorf("%s%s", status, detail)
	}
	length := -1
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) == 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	if length >= 0 {
		_, err = reader.Discard(length)
		return 0, err
	}
	return chunks(reader)
}

// chunks reads a chunked body to its end and counts the events in it.
func chunks(reader *bufio.Reader) (int, error) {
	var events int
	var ended bool
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return 0, err
		}
		data := make([]byte, size+2)
		if _, err = io.ReadFull(reader, data); err != nil {
			return 0, err
		}
		if size == 0 {
			if !ended {
				return 0, errors.New("the stream ended without [DONE]")
			}
			return events, nil
		}
		events += bytes.Count(data, []byte("data: "))
		ended = ended || bytes.Contains(data, []byte("[DONE]"))
	}
}

func report(shares []share, took time.Duration) {
	var all []time.Duration
	events, broken := 0, 0
	for i := range shares {
		if shares[i].err != nil {
			log.Printf("client %d: %v", i, shares[i].err)
			if broken++; 20*broken > len(shares) {
				log.Fatalf("%d of %d clients got a broken answer", broken, len(shares))
			}
		}
		all = append(all, shares[i].times...)
		events += shares[i].events
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(part float64) float64 { return float64(all[int(part*float64(len(all)-1))].Nanoseconds()) / 1e3 }
	_ = json.NewEncoder(os.Stdout).Encode(result{len(all), events, broken, took.Seconds(), at(0.5), at(0.99)})
}
