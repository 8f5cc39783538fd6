-- Clients of the API at the remote port: certificates of every kind, curl, and watches.
local uv = require "luv"
local assert = require "luassert"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local M = {}

-- A certificate of our cluster's CA for a new key; the daemon signs it with what its state holds, and for an operator
-- or a reader writes there that it is good. @spec: cn, ou, from and to (seconds from now), unknown: it does not.
-- Returns curl's words for it.
local SIGN = [[
local crypto, store, json = require "sym.crypto", require "sym.store", require "symphony.json"
local ca = json.decode(store.get("/cluster").value)
local ca_key = crypto.key_load(json.decode(store.get("/secret/ca").value).key)
local key = crypto.key_generate()
local cn, ou, from, to, known = %q, %q, os.time() + %d, os.time() + %d, %s
if known then
  local state = require "symphony.cluster.state"
  assert(state.submit { ops = { state.put("/fingerprint/" .. key:fingerprint(), ou .. " " .. cn),
    state.put("/client/" .. cn, { name = cn, role = ou, fingerprint = key:fingerprint(), expires = to }) } })
end
return { key = key:pem(), cert = crypto.cert_sign(ca_key, ca.ca, crypto.csr(key, "x"), { cn = cn, ou = ou, o = ca.id,
  not_before = from, not_after = to }) }]]

-- The value of a piece of code in the daemon.
function M.evaluate(m, code)
  local result = m:cli("--json", "lua", "-e", code)
  assert.equal(0, result.code, result.out .. result.err)
  return assert(json.decode(result.out:match("^[^\n]*")))
end

function M.certificate(t, m, spec)
  local is_client = spec.ou == "operator" or spec.ou == "reader"
  local made = M.evaluate(m, SIGN:format(spec.cn, spec.ou, spec.from or -100, spec.to or 1000,
    is_client and not spec.unknown))
  local base = ("%s/%s-%d"):format(t.root, spec.ou, uv.hrtime())
  proc.write_file(base .. ".key", made.key)
  proc.write_file(base .. ".crt", made.cert)
  return { "--cert", base .. ".crt", "--key", base .. ".key" }
end

-- A request to join as the manager @m wants one, with a new key.
local REQUEST = [[
local crypto, state = require "sym.crypto", require "symphony.cluster.state"
local key, ca = crypto.key_generate(), crypto.unhex(crypto.cert_info(state.cluster().ca).digest)
return { key = key:pem(), csr = crypto.csr(key, require("symphony.cluster.statement").make(ca, os.time())) }]]

-- Makes a worker called @name by a request to @m; nothing runs behind it. Returns its node id and curl's words for its
-- certificate.
function M.worker(t, m, name)
  local made = M.evaluate(m, REQUEST)
  local port = proc.free_port()
  local answer = assert(M.secure(m, nil, "POST", "/v1/join", json.encode { role = "worker", csr = made.csr, name = name,
    named = true, version = "1.0", token = t.tokens.worker,
    addresses = { remote = "127.0.0.1:" .. port, gossip = "127.0.0.1:" .. port } }))
  assert.equal(200, answer.status, answer.body)
  local base = ("%s/worker-%d"):format(t.root, uv.hrtime())
  proc.write_file(base .. ".key", made.key)
  proc.write_file(base .. ".crt", answer.json.certificate)
  return answer.json.node_id, { "--cert", base .. ".crt", "--key", base .. ".key" }
end

local SIGN_WORKER = [[
local crypto, store, json = require "sym.crypto", require "sym.store", require "symphony.json"
local cluster = json.decode(store.get("/cluster").value)
local ca_key = crypto.key_load(json.decode(store.get("/secret/ca").value).key)
local csr = crypto.csr(crypto.key_load(require("sym.sys").read_file(%q)), "x")
return { cert = crypto.cert_sign(ca_key, cluster.ca, csr, { cn = %q, ou = "worker", o = cluster.id, server = true,
  not_before = math.floor(os.time() + %d), not_after = math.floor(os.time() + %d) }) }]]

-- Another certificate (PEM) for the key of worker @w by the CA of manager @m, good @from and @to seconds from now.
function M.sign_worker(m, w, from, to)
  return M.evaluate(m, SIGN_WORKER:format(w.dir .. "/tls/node.key", w.node_id, from, to)).cert
end

-- The manager's own certificate, as a client.
function M.own(m)
  return { "--cert", m.dir .. "/tls/node.crt", "--key", m.dir .. "/tls/node.key" }
end

-- curl's command line for a request to @m's remote port, whose certificate is checked for the manager's name.
local function curl(m, who, ...)
  local name = json.decode(proc.read_file(m.dir .. "/key.json")).node_id
  local argv = { "curl", "-sS", "-N", "--cacert", m.dir .. "/tls/ca.crt", "--connect-to",
    ("%s::%s:"):format(name, m.address) }
  for _, words in ipairs { who or {}, { ... } } do table.move(words, 1, #words, #argv + 1, argv) end
  return argv, ("https://%s:%d"):format(name, m.remote_port)
end

local function parse(text)
  local head, body
  repeat
    head, body = text:match("^(HTTP/1%.[01] %d%d%d.-\r\n)\r\n(.*)$")
    text = body or ""
  until not head or not head:match("^HTTP/1%.[01] 100")
  if not head then return nil, "no answer" end
  local headers = {}
  for name, value in head:gmatch("\r\n([^:\r\n]+):[ \t]*([^\r\n]*)") do headers[name:lower()] = value end
  return { status = tonumber(head:match("^HTTP/1%.[01] (%d+)")), headers = headers, body = body,
    json = json.decode(body) }
end

-- One request over TLS with the words @who; the answer as http.call has it, or nil, what curl says.
function M.secure(m, who, method, target, body, headers)
  local argv, url = curl(m, who, "--max-time", tostring(20 * cluster.patience), "-i", "--path-as-is")
  argv[#argv + 1] = url .. target
  local words = method == "HEAD" and { "-I" } or { "-X", method }
  for line in (headers or ""):gmatch("[^\r\n]+") do table.move({ "-H", line }, 1, 2, #words + 1, words) end
  if body then table.move({ "--data-binary", "@-" }, 1, 2, #words + 1, words) end
  table.move(words, 1, #words, #argv + 1, argv)
  local result = proc.run(argv, { stdin = body, timeout = 30 * cluster.patience })
  local answer, err = parse(result.out)
  if not answer or result.code ~= 0 then return nil, result.code .. " " .. result.err .. (err or "") end
  return answer
end

-- A connection with the words @who that stays: ask(method, target, body) sends a request and waits for nothing;
-- answer() waits for the answer, as secure() has it; nil if the connection ended instead. One request at a time.
function M.connect(m, who)
  local name = json.decode(proc.read_file(m.dir .. "/key.json")).node_id
  local argv = { "openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", m.dir .. "/tls/ca.crt",
    "-servername", name, "-connect", m:remote() }
  for i = 1, #who, 2 do table.move({ who[i]:sub(2), who[i + 1] }, 1, 2, #argv + 1, argv) end
  local call, from = proc.begin(argv, { hold_stdin = true }), 1
  local line = {}
  function line.ask(method, target, body)
    from = #call.out + 1
    call.stdin:write(("%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s"):format(method, target, name,
      #(body or ""), body or ""))
  end
  function line.answer()
    local answer
    cluster.wait_for("an answer", 10, function()
      answer = parse(call.out:sub(from))
      local length = answer and tonumber(answer.headers["content-length"])
      return length and #answer.body >= length or call.ended(), call.out .. call.err
    end)
    return answer
  end
  function line.close() call.process:kill("sigterm") end
  return line
end

function M.refused(answer, status, code)
  assert.equal(status, answer.status, answer.body)
  assert.is_table(answer.json, answer.body)
  assert.equal(code, answer.json.error.code, answer.body)
  assert.is_true(#answer.json.error.message > 5, answer.body)
end

-- A watch through curl: lines() gives the decoded lines so far.
function M.watch(m, who, target)
  local argv, url = curl(m, who)
  argv[#argv + 1] = url .. target
  local call = proc.begin(argv)
  function call.lines()
    local list, from = {}, 1
    while true do
      local stop = call.out:find("\n", from, true) -- a pattern takes for ever on a long line that has not ended
      if not stop then return list end
      local line = call.out:sub(from, stop - 1)
      list[#list + 1] = assert(json.decode(line), line)
      from = stop + 1
    end
  end
  return call
end

function M.wait_lines(w, n)
  return cluster.wait_for(n .. " lines of a watch", 10, function()
    return #w.lines() >= n and w.lines(), w.out .. w.err
  end)
end

return M
