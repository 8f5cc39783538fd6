-- Lua in the daemon: what code at a prompt may do to the cluster, and what it may not.
local uv = require "luv"
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

-- A request for code whose answer is collected: {messages() -> list, out, exit}; connection:close() goes away.
local function begin(m, body)
  local call = { out = "", connection = http.connect(m.socket) }
  local rest = ""
  call.connection:request("POST", "/v1/lua", json.encode(body), { timeout = 120, on_data = function(piece)
    rest = rest .. piece
    for line in rest:gmatch("([^\n]*)\n") do
      local message = json.decode(line) or {}
      call.out = call.out .. (message.out or "")
      call.result = message.result or call.result
      call.session = message.session or call.session
      call.error = message.error or call.error
      call.exit = message.exit or call.exit
    end
    rest = rest:match("[^\n]*$")
  end }, function(err, answer)
    call.over, call.failed, call.status = true, err, answer and answer.status
  end)
  return call
end

local function run(m, body)
  local call = begin(m, body)
  cluster.wait_for("the end of " .. body.code, 60, function() return call.over, call.out end)
  call.connection:close()
  assert.equal(200, call.status, call.failed)
  return call
end

local function lua(m, ...)
  return m:cli("lua", ...)
end

-- For code: count(n) leaves a number in a table that all see.
local COUNT = "local function count(n) require('symphony.json').spec_counter = n end "

local function counter(m)
  return tonumber(lua(m, "-e", "require('symphony.json').spec_counter").out) or 0
end

-- Waits until nothing counts any more: the number.
local function rest(m)
  local last
  cluster.wait_for("the code to rest", 20, function()
    local before = last
    last = counter(m)
    if last == before then return true end
    proc.run_for(0.2)
    return false, last
  end)
  return last
end

local function rss(m)
  return tonumber(proc.read_file(("/proc/%d/status"):format(m.process.pid)):match("VmRSS:%s+(%d+)"))
end

-- Milliseconds of the processor that the manager's loop has used.
local function cpu_ms(m)
  local pid = m.process.pid
  local stat = proc.read_file(("/proc/%d/task/%d/stat"):format(pid, pid)):match("^.*%) (.*)$")
  local user, system = stat:match("^" .. ("%S+ "):rep(11) .. "(%d+) (%d+)")
  return 10 * (user + system) -- of the kernel's ticks there are 100 a second
end

-- `symphony lua` at a terminal of its own (util-linux' script makes one), with its history below the folder @home. In
-- the place of the shell: one that waits for it would see its Ctrl-C, too, and end with 130.
local function terminal(m, home)
  local command = ("exec '%s' --socket '%s' lua"):format(cluster.symphony, m.socket)
  local call = proc.begin({ "script", "-qec", command, "/dev/null" },
    { hold_stdin = true, env = { XDG_STATE_HOME = home, TERM = "vt100", NO_COLOR = "1" } })
  local self, seen = { call = call }, 0
  -- Waits until @text comes, behind what was waited for before.
  function self.expect(text)
    cluster.wait_for(("the terminal to show %q"):format(text), 15, function()
      local _, last = call.out:find(text, seen + 1, true)
      seen = last or seen
      return last, call.out:sub(seen + 1)
    end)
  end
  function self.type(text) call.stdin:write(text) end
  -- Types a line and waits for what it leads to, and for the next prompt.
  function self.line(text, answer, prompt)
    self.type(text .. "\r")
    if answer then self.expect(answer) end
    self.expect(prompt or "\n> ")
  end
  self.expect("\n> ")
  return self
end

describe("symphony lua", function()
  it("runs code, a script and standard input as programs", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local r = lua(m, "-e", "return #nodes()")
    assert.same({ 0, "1\n", "" }, { r.code, r.out, r.err })
    r = lua(m, "-e", "print('a') io.stderr:write('b\\n') io.write('c', 1, '\\n') return 2, nil")
    assert.same({ 0, "a\nc1\n2\nnil\n", "b\n" }, { r.code, r.out, r.err })
    local script = t.root .. "/script.lua"
    proc.write_file(script, "#!/usr/bin/env -S symphony lua\nlocal a, b = ...\nprint(arg[0]:match('[^/]*$'), a, b, " ..
      "#arg)\n")
    r = lua(m, script, "x", "--y")
    assert.same({ 0, "script.lua\tx\t--y\t2\n", "" }, { r.code, r.out, r.err })
    r = lua(m, { stdin = "local x = 5\nprint(x)\nos.exit(x)" })
    assert.same({ 5, "5\n", "" }, { r.code, r.out, r.err })
    r = lua(m, "-", "z", "--json", { stdin = "print(...)" })
    assert.same({ 0, "z\t--json\n", "" }, { r.code, r.out, r.err })
    r = lua(m, "--json", "-e", "return {...}", "z", "-e")
    assert.same({ "z", "-e" }, r.json)
    -- Errors.
    proc.write_file(script, "local function f()\n  error('oops')\nend\nprint('before')\nf()\n")
    r = lua(m, script)
    assert.same({ 1, "before\n" }, { r.code, r.out })
    assert.truthy(r.err:find("script.lua:2: oops\nstack traceback:", 1, true), r.err)
    assert.truthy(r.err:find("script.lua:5: in main chunk", 1, true), r.err)
    for _, misuse in ipairs { "collectgarbage('setpause')", "state.get({})", "kv.ls('', 5)", "events(5)" } do
      r = lua(m, "-e", misuse)
      assert.same({ 1, nil }, { r.code, r.err:match("[^\n]*%.lua:[^\n]*") })
      assert.truthy(r.err:find("(invalid)", 1, true), r.err)
    end
    r = lua(m, "-e", "x = = 1")
    assert.equal(1, r.code)
    assert.truthy(r.err:find("near '='", 1, true), r.err)
    r = lua(m, "-e", "for i = 1, 2 do")
    assert.equal(1, r.code)
    assert.truthy(r.err:find("near <eof>", 1, true), r.err)
    r = lua(m, t.root .. "/none.lua")
    assert.equal(1, r.code)
    assert.truthy(r.err:find("none.lua", 1, true), r.err)
    -- JSON.
    assert.same({ name = "n", list = {} }, m:json("lua", "-e", "{ name = 'n', list = json.array() }"))
    assert.equal(1, m:json("lua", "-e", "state.count('/node/')"))
    assert.truthy(lua(m, "--json", "-e", "return print").err:find("a function", 1, true))
  end))

  it("keeps the leader in office, whatever it is asked to run", cluster.scenario(function(t)
    -- With sanitizers all takes longer, but for what the clock ends.
    local election_ms = 400 * cluster.patience
    t:cluster(3, { flags = { "--election-ms", ("%d"):format(election_ms) } })
    -- No code may keep the loop from its heartbeats for an election timeout: what the loop has used of the processor
    -- says so, however busy the machine is. Where that is well, an election is one of a machine that is too busy, which
    -- comes now and then, but not every time.
    local function keeps_office(code, check)
      local before, after
      for _ = 1, 3 do
        local leader = t:leader()
        before = leader:json("manager", "status").term
        local used = cpu_ms(leader)
        check(lua(leader, "-e", code))
        used = cpu_ms(leader) - used
        assert.is_true(used < election_ms, ("it has kept the loop for %d ms: %s"):format(used, code))
        after = leader:json("manager", "status")
        if after.quorum and after.term == before then return end
      end
      error(("three times an election in term %d, now %d: %s"):format(before, after.term, code))
    end
    local trap = "local mt = {} for name in ('index len tostring lt le eq call concat pairs mul'):gmatch('%l+') do " ..
      "mt['__' .. name] = function() while true do end end end local t = setmetatable({}, mt) "
    local attacks = {
      "while true do end", "while true do pcall(function() while true do end end) end",
      "while true do pcall(coroutine.wrap(function() while true do end end)) end",
      "return setmetatable({}, {__index = function() while true do end end}).x",
      "coroutine.wrap(function() local c <close> = setmetatable({}, {__close = function() while true do end end}) " ..
        "while true do end end)()",
      "xpcall(function() while true do end end, function() while true do end end) while true do end",
      "setmetatable({}, {__gc = function() while true do end end}) collectgarbage()",
      "string.rep('x', 1 << 30)", "local s = 'x' while true do s = s .. s end",
      "return (('a'):rep(1 << 20)):find(('a*'):rep(60) .. 'b')", "return (('a'):rep(1 << 20)):gsub('.-.-.-b', '')",
      "table.move({}, 1, 1e9, 2)", "local t = {} for i = 1, 1e5 do table.insert(t, 1, i) end while true do end",
      "local t = {} for i = 1, 2e5 do t[i] = -i end while true do table.sort(t) end",
      "table.concat(setmetatable({}, {__index = table.concat}), '', 1, 1 << 40)",
      "local t = {} for i = 1, math.huge do t[i] = {} end",
      "local s = ('1'):rep((1 << 22) - 1) while true do local x = s .. '1' end",
      "local s = ('1'):rep(1 << 22) while true do math.floor(s) end",
      -- What the daemon is given does nothing there.
      trap .. "kv.put('k', t)", trap .. "kv.ls('', { limit = t })", trap .. "kv.txn { ops = { t } }",
      trap .. "sleep(t)", trap .. "nodes { name = 1, [t] = t }", trap .. "events { since = t }",
      trap .. "kv.each('', t) gather { t }",
      "gather { function() while true do end end }",
      "gather { function() watch('/kv/', function() while true do end end) end, function() kv.put('k', 1) end }",
      "getmetatable('').__index = nil", "sleep(math.huge)",
    }
    for _, code in ipairs(attacks) do
      keeps_office(code, function(r)
        assert.equal(1, r.code, code .. "\n" .. r.out .. r.err)
        assert.not_equal("", r.err, code)
      end)
    end
    -- What they have left behind is no reason to stop the next.
    local leader = t:leader()
    for _ = 1, 3 do
      local r = lua(leader, "-e", "local t = {} for i = 1, math.huge do t[i] = { i, i, i, i } end")
      assert.truthy(r.err:find("stopped", 1, true), r.err)
      assert.equal("1000\n", lua(leader, "-e", "local n = 0 for i = 1, 1000 do n = n + 1 end return n").out)
    end
  end))

  it("waits for a reader who does not read", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local start = rss(m)
    for _, code in ipairs {
      "for i = 1, 1 << 20 do print(('x'):rep(1023)) count(i) end",
      "local n = 0 coroutine.wrap(function() while true do print(('x'):rep(1023)) n = n + 1 count(n) end end)()",
      "for i = 1, 1000 do count(1024 * i) print(('x'):rep(1 << 20)) end",
    } do
      lua(m, "-e", COUNT .. "count(0)")
      local pipe, body = uv.new_pipe(false), json.encode { code = COUNT .. code }
      pipe:connect(m.socket, function(err)
        assert(not err, err)
        pipe:write(("POST /v1/lua HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body))
      end)
      cluster.wait_for("output to begin", 10, function() return counter(m) > 0 end)
      local printed = rest(m)
      assert.is_true(printed < 8192, ("%d KiB were printed for nobody"):format(printed))
      pipe:close()
      -- When the reader goes, so does the code.
      cluster.wait_for("the code to end", 10, function()
        return tonumber(lua(m, "-e", "return require('symphony.async').stats().alive").out) < 20
      end)
    end
    assert.is_true(rss(m) - start < 65536 * cluster.patience, ("%d KiB more"):format(rss(m) - start))
  end))

  it("drops what runs when its client goes, and what a session runs when told to", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local beat = COUNT .. "local n = 0 while true do sleep(0.01) n = n + 1 count(n) end"
    local function beats()
      local at = counter(m)
      cluster.wait_for("it to run", 10, function() return counter(m) > at end)
    end
    local client = proc.begin { cluster.symphony, "--socket", m.socket, "lua", "-e", beat }
    beats()
    client.process:kill("sigint")
    cluster.wait_for("the client to end", 10, client.ended)
    assert.equal(130, client.process.code)
    rest(m)
    local session = run(m, { code = "kept = 7", session = "new" }).session
    local call = begin(m, { code = beat, session = session })
    beats()
    local busy = m:http("POST", "/v1/lua", json.encode { code = "1", session = session })
    assert.equal(503, busy.status)
    local found = m:http("POST", "/v1/lua/complete", json.encode { code = "kep", session = session })
    assert.same({ "kept" }, found.json.items)
    m:json("kv", "put", "app/one", "1")
    found = m:http("POST", "/v1/lua/complete", json.encode { code = "kv.get('ap", session = session })
    assert.same({ items = { "app/" }, from = 9 }, found.json)
    local canceled = m:http("POST", "/v1/lua/cancel", json.encode { session = session })
    assert.same({ canceled = true }, canceled.json)
    cluster.wait_for("the answer to end", 10, function() return call.over end)
    assert.same({ 130, "canceled" }, { call.exit, call.error.code })
    rest(m)
    assert.equal("7\n", run(m, { code = "kept", session = session }).result)
    -- Also what catches its errors.
    call = begin(m, { code = "while true do pcall(sleep, 0.01) end", session = session })
    cluster.wait_for("it to run", 10, function()
      return m:http("POST", "/v1/lua/cancel", json.encode { session = session }).json.canceled
    end)
    cluster.wait_for("the answer to end", 10, function() return call.over end)
    assert.equal(1, call.exit)
    assert.truthy(call.error.message:find("stopped", 1, true), call.error.message)
  end))

  it("prints to who has called, tells of changes, and is logged", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local a = begin(m, { code = "watch('/kv/', print)", session = "new" })
    local b = begin(m, { code = "kv.watch('b/', function(k, v) print(k, v) return v ~= nil end)", session = "new" })
    cluster.wait_for("the sessions to begin", 10, function()
      return a.session and b.session and m:log():find(a.session:sub(1, 8), 1, true) and
        m:log():find(b.session:sub(1, 8), 1, true)
    end)
    m:json("kv", "put", "b/1", "one")
    m:json("kv", "put", "a/1", "two")
    m:json("kv", "rm", "b/1")
    cluster.wait_for("the watch to end", 10, function() return b.over, b.out end)
    assert.equal("b/1\tone\nb/1\tnil\n", b.out)
    cluster.wait_for("all changes", 10, function()
      return select(2, a.out:gsub("\n", "")) == 3, a.out
    end)
    assert.truthy(a.out:find("^/kv/b/1\tone\t%d+\n/kv/a/1\ttwo\t%d+\n/kv/b/1\tnil\t%d+\n$"), a.out)
    a.connection:close()
    local client = proc.begin { cluster.symphony, "--socket", m.socket, "lua", "-e",
      "return 'SYMTKN-1-aaaa-bbbb' .. 1" }
    cluster.wait_for("the client to end", 10, client.ended)
    local line = ("lua: uid %d, pid %d: return '(token)' .. 1"):format(uv.getuid(), client.process.pid)
    assert.truthy(m:log():find(line, 1, true), m:log_tail(5))
  end))

  it("is a prompt with lines that are edited, a history and completion", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local home = t:folder("state")
    local tty = terminal(m, home)
    tty.line("1 + 1", "2")
    tty.line("for i = 1, 2 do", nil, "\n>> ")
    tty.line("print('line', i) end", "line\t1\r\nline\t2")
    tty.line("x = = 1", "near '='")
    tty.line("error('oops')", "lua:1: oops")
    -- Tab: what all have in common, then the list.
    tty.type("kv.p\t")
    tty.expect("kv.put")
    tty.line("('dir/key', 5)")
    tty.type("kv.get('di\t")
    tty.expect("dir/")
    tty.type("k\t")
    tty.expect("key")
    tty.line("').value", '"5"')
    tty.type("state.\t")
    tty.expect("count")
    tty.expect("revision")
    tty.expect("> state.")
    -- Ctrl-C at the prompt gives up the line, and during a chunk the chunk; the session stays.
    tty.type("nonsense\3")
    tty.expect("^C\r\n> ")
    tty.line("kept = 7")
    tty.type("while true do sleep(1) end\r")
    cluster.wait_for("it to run", 10, function() return m:log():find("while true do sleep(1) end", 1, true) end)
    tty.type("\3")
    tty.expect("\n> ")
    tty.line("return kept + 1", "8")
    tty.line("while true do end", "kept the loop busy")
    tty.line("return kept + 2", "9")
    -- Up and enter: the line before, and not the one with the token.
    tty.line("secret = 'SYMTKN-1-aaaa-bbbb'")
    tty.line("\27[A", "9")
    tty.type("\4")
    cluster.wait_for("the client to end", 10, tty.call.ended)
    assert.equal(0, tty.call.process.code)
    local path = home .. "/symphony/lua_history"
    local history = proc.read_file(path)
    assert.truthy(history:find("^1 %+ 1\nfor i = 1, 2 do\nprint%('line', i%) end\n"), history)
    assert.falsy(history:find("SYMTKN", 1, true) or history:find("nonsense", 1, true), history)
    assert.equal("600", ("%o"):format(uv.fs_stat(path).mode & 511))
    -- The next one has it.
    tty = terminal(m, home)
    tty.line("\27[A", "attempt to perform arithmetic")
    tty.type("os.exit(3)\r")
    cluster.wait_for("the client to end", 10, tty.call.ended)
    assert.equal(3, tty.call.process.code)
  end))

  it("is a prompt without editing at a terminal that cannot", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local home = t:folder("state")
    local command = ("TERM=dumb exec '%s' --socket '%s' lua"):format(cluster.symphony, m.socket)
    local call = proc.begin({ "script", "-qec", command, "/dev/null" },
      { hold_stdin = true, env = { XDG_STATE_HOME = home } })
    call.stdin:write("1 + 1\nif true then\nprint('yes') end\n\4")
    cluster.wait_for("the client to end", 10, call.ended)
    assert.equal(0, call.process.code)
    assert.truthy(call.out:find("> 2\r\n", 1, true) and call.out:find(">> yes\r\n", 1, true), call.out)
    assert.is_nil(uv.fs_stat(home .. "/symphony"))
  end))
end)
