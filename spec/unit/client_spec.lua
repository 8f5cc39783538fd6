local fake = require "spec.unit.fake"

local calls -- requests that were made, with their callbacks
fake.module("http", {
  request = function(opts, cb)
    local call = { opts = opts, cb = cb }
    calls[#calls + 1] = call
    return {
      cancel = function()
        call.canceled = true
      end,
    }
  end,
})

local env, ttys
local sys = package.loaded["sym.sys"]
local status -- the program's exit status
sys.exit = function(code)
  status = code
  error({ exit = true }, 0)
end
sys.isatty = function(fd)
  return ttys[fd] or false
end
sys.getenv = function(name)
  return env[name]
end
sys.winsize = function()
  return nil
end
sys.uid = function()
  return 1000
end
package.loaded["symphony.cli.commands.kv"] = {
  name = "kv",
  summary = "Keys",
  commands = {
    { name = "get", summary = "Read", args = function(p) p:argument("key") end, run = function() end },
    { name = "watch follow", summary = "Follow", reads = true, args = function(p) p:argument("key"):args("?") end,
      run = function() end },
    {
      name = "save",
      where = "client",
      run = function(ctx)
        local body, err = ctx.call("GET", "/v1/backup", nil, { raw = true })
        return body and { got = body }, err
      end,
    },
  },
}

local json = require "symphony.json"
local client = require "symphony.cli.client"
local commands = require "symphony.cli.commands"

-- A stream that keeps what is written, and fails once told to.
local function stream()
  local s = { text = "" }
  function s:write(...)
    if self.broken then
      return nil, "Broken pipe", self.broken
    end
    self.text = self.text .. table.concat({ ... })
    return self
  end
  function s:flush()
    return self:write("")
  end
  return s
end

describe("the client", function()
  local stdout, stderr = io.stdout, io.stderr
  local out, err

  before_each(function()
    calls, env, ttys, status = {}, {}, {}, nil
    out, err = stream(), stream()
    rawset(io, "stdout", out)
    rawset(io, "stderr", err)
  end)
  after_each(function()
    rawset(io, "stdout", stdout)
    rawset(io, "stderr", stderr)
    -- The handle for Ctrl-C would keep the next loop alive.
    require("luv").walk(function(handle)
      if not handle:is_closing() then
        handle:close()
      end
    end)
    require("luv").run()
  end)

  -- Calls and notes the exit status.
  local function catch(fn, ...)
    local ok, what = pcall(fn, ...)
    if not ok and (type(what) ~= "table" or not what.exit) then
      error(what, 0)
    end
  end
  local function start(...)
    catch(client.main, ...)
    return calls[1]
  end
  local function lines(call, ...)
    call.opts.on_head(200)
    for _, message in ipairs { ... } do
      catch(call.opts.on_data, json.encode(message) .. "\n")
    end
  end

  it("reads of the line what is its own", function()
    local found = commands.scan { "--socket", "S", "kv", "--json", "get", "x", "--timeout=3", "--", "--help" }
    assert.same({ words = { "kv", "get", "x", "--help" }, socket = "S", json = true, timeout = "3" }, found)
    assert.same({ words = { "--socket", "kv" } }, commands.scan { "--", "--socket", "kv" })
    assert.is_true(commands.scan({ "kv", "-h" }).help)
    assert.is_true(commands.scan({ "--version" }).version)
    assert.same({ words = {} }, commands.scan { "--socket" })
    assert.same({ words = {}, socket = "" }, commands.scan { "--socket=" })
  end)

  it("takes streams apart, however they are cut", function()
    local seen = {}
    local feed = require("symphony.lines").of(function(message)
      seen[#seen + 1] = message.n
    end)
    local text = '{"n":1}\n\n{"n":2}\nnot json\n7\n{"n":3}\n{"n":'
    for i = 1, #text do
      feed(text:sub(i, i))
    end
    assert.same({ 1, 2, 3 }, seen)
    feed("4}\n{\"n\":5}\n")
    assert.same({ 1, 2, 3, 4, 5 }, seen)
  end)

  it("sends the command and prints what comes", function()
    ttys[1] = true
    local call = start("kv", "get", "k")
    assert.same({ "./control.sock", "POST", "/v1/command" }, { call.opts.unix, call.opts.method, call.opts.path })
    local sent = json.decode(call.opts.body)
    assert.same({ { "kv", "get", "k" }, true, true, false }, { sent.argv, sent.tty, sent.color, sent.interactive })
    lines(call, { out = "a\u{e9}" }, { err = "b" }, { out = "c" }, { exit = 4 })
    assert.is_nil(status)
    catch(call.cb, nil, { status = 200 })
    assert.same({ "a\u{e9}c", "b", 4 }, { out.text, err.text, status })
  end)

  it("takes the socket from the line, else from the environment", function()
    env.SYMPHONY_SOCKET = "/env.sock"
    assert.equal("/env.sock", start("kv", "get", "k").opts.unix)
    calls = {}
    assert.equal("/x", start("--socket=/x", "kv", "get", "k").opts.unix)
  end)

  it("paints only for a terminal that wants it", function()
    ttys[1], ttys[2], env.NO_COLOR = true, true, "1"
    local sent = json.decode(start("kv", "get", "k").opts.body)
    assert.same({ false, false }, { sent.color, sent.color_err })
  end)

  it("says that there is no daemon, and how to start one", function()
    local call = start("kv", "get", "k")
    catch(call.cb, { code = "not_found", message = "no such file" })
    assert.equal(3, status)
    assert.truthy(err.text:find("no daemon answers at ./control.sock: no such file (no_daemon)", 1, true))
    assert.truthy(err.text:find("hint: start a daemon", 1, true))
  end)

  it("tells what is wrong with the line first", function()
    local call = start("kv", "get")
    catch(call.cb, { code = "not_found", message = "no such file" })
    assert.equal(2, status)
    assert.truthy(err.text:find("missing argument 'key'", 1, true))
  end)

  it("ends with what the failure means", function()
    for code, wanted in pairs { denied = 4, timeout = 3, unreachable = 3, closed = 1 } do
      calls, status = {}, nil
      local call = start("kv", "get", "k", "--json")
      err.text = ""
      catch(call.cb, { code = code, message = "m" })
      assert.equal(wanted, status, code)
      assert.truthy(json.decode(err.text).error.code)
    end
  end)

  it("passes on what the daemon refuses", function()
    local call = start("kv", "get", "k")
    call.opts.on_head(403)
    call.opts.on_data('{"error": {"code": "denied", ')
    call.opts.on_data('"message": "not you", "hint": "ask"}}')
    catch(call.cb, nil, { status = 403 })
    assert.same({ 4, "symphony: not you (denied)\n  hint: ask\n" }, { status, err.text })
    calls = {}
    call = start("kv", "get", "k")
    call.opts.on_head(500)
    catch(call.cb, nil, { status = 500 })
    assert.equal(1, status)
  end)

  it("does not take a broken stream for success", function()
    for _, failure in ipairs { false, { code = "closed", message = "gone" }, { code = "io", message = "reset" } } do
      calls, status = {}, nil
      local call = start("kv", "get", "k")
      lines(call, { out = "part" })
      catch(call.cb, failure or nil, not failure and { status = 200 } or nil)
      assert.equal(1, status)
    end
    assert.truthy(err.text:find("(outcome_unknown)", 1, true))
  end)

  it("does not say that the end of what only reads leaves something in doubt", function()
    for _, words in ipairs { { "kv", "watch", "save" }, { "kv", "follow" }, { "events", "--follow" } } do
      for _, failure in ipairs { false, { code = "closed", message = "gone" } } do
        calls, status, err.text = {}, nil, ""
        local call = start(table.unpack(words))
        call.opts.on_head(200)
        lines(call, { out = "part" })
        catch(call.cb, failure or nil, not failure and { status = 200 } or nil)
        assert.equal(1, status)
        assert.truthy(err.text:find("has ended (closed)\n  hint: nothing was changed", 1, true), err.text)
      end
    end
    -- That there is none is another thing.
    calls, status = {}, nil
    local call = start("kv", "watch")
    catch(call.cb, { code = "not_found", message = "no such file" })
    assert.equal(3, status)
    assert.is_false(commands.only_reads { "kv", "save" })
    assert.is_false(commands.only_reads { "none" })
  end)

  it("ends quietly when nobody reads, loudly when the disk is full", function()
    local call = start("kv", "get", "k")
    out.broken = 32
    lines(call, { out = "x" })
    assert.same({ 141, "" }, { status, err.text })
    out.broken = 28
    lines(call, { out = "x" })
    assert.equal(1, status)
    assert.truthy(err.text:find("standard output", 1, true))
  end)

  it("asks, and sends the answer", function()
    local read = io.read
    rawset(io, "read", function()
      return " Yes "
    end)
    local call = start("kv", "get", "k")
    lines(call, { ask = "Really?", id = "q1" })
    rawset(io, "read", read)
    assert.truthy(err.text:find("Really? [y/N]", 1, true))
    assert.equal("/v1/command/answer", calls[2].opts.path)
    assert.same({ id = "q1", yes = true }, json.decode(calls[2].opts.body))
  end)

  it("takes the end of the input for no, and ends the line of the question", function()
    local read = io.read
    rawset(io, "read", function() end)
    local call = start("kv", "get", "k")
    lines(call, { ask = "Really?", id = "q1" })
    rawset(io, "read", read)
    assert.truthy(err.text:find("Really? [y/N] \n", 1, true))
    assert.is_false(json.decode(calls[2].opts.body).yes)
  end)

  it("needs no daemon for help", function()
    for _, argv in ipairs { { "help", "kv", "get" }, { "kv", "get", "--help" }, { "--version" } } do
      start(table.unpack(argv))
      assert.equal(0, status)
      assert.same({}, calls)
      assert.equal("", err.text)
      assert.is_true(#out.text > 0)
    end
  end)

  it("asks the daemon which commands only it knows, and goes without", function()
    for _, argv in ipairs { {}, { "help" }, { "--help" } } do
      out.text, calls, status = "", {}, nil
      local call = start(table.unpack(argv))
      assert.same({ "GET", "/v1/commands" }, { call.opts.method, call.opts.path })
      catch(call.cb, { code = "unreachable", message = "no such file" })
      assert.same({ 0, "" }, { status, err.text })
      assert.truthy(out.text:find("kv        Keys", 1, true))
      out.text, calls, status = "", {}, nil
      call = start(table.unpack(argv))
      catch(call.cb, nil, { status = 200, body = '[{"name": "mine", "summary": "My own"}]' })
      assert.equal(0, status)
      assert.truthy(out.text:find("mine      My own", 1, true))
    end
  end)

  it("asks it for a command that it does not know itself, and needs none to know that there is none", function()
    local call = start("kx")
    assert.equal("/v1/command", call.opts.path)
    catch(call.cb, { code = "unreachable", message = "no such file" })
    assert.equal(2, status)
    assert.truthy(err.text:find("did you mean 'kv'?", 1, true))
    for _, argv in ipairs { { "help", "mine", "sub" }, { "mine", "sub", "--help" } } do
      calls = {}
      call = start(table.unpack(argv))
      assert.same({ "mine", "sub", "--help" }, json.decode(call.opts.body).argv)
    end
  end)

  it("runs its own commands itself", function()
    local call = start("kv", "save")
    assert.same({ "GET", "/v1/backup" }, { call.opts.method, call.opts.path })
    catch(call.cb, nil, { status = 200, body = "bytes" })
    assert.same({ 0, "got  bytes\n", "" }, { status, out.text, err.text })
    calls = {}
    call = start("kv", "save")
    catch(call.cb, { code = "not_found", message = "x" })
    assert.equal(3, status)
  end)
end)
