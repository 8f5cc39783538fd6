require "spec.unit.fake"
local errors = require "symphony.errors"

describe("errors", function()
  it("have the codes and statuses of src/base/err.h", function()
    local f = assert(io.open("src/base/err.h"))
    local text = f:read("a")
    f:close()
    local n = 0
    for code, status in text:gmatch('X%(E%u+, "([%l_]+)", (%d+)%)') do
      n = n + 1
      assert.equal(tonumber(status), errors.http_status { code = code }, code)
    end
    assert.is_true(n > 20)
  end)

  it("have the exit statuses of the command line", function()
    local wanted = { usage = 2, no_daemon = 3, denied = 4, unauthenticated = 4, expired = 4, no_quorum = 5,
      canceled = 130, conflict = 1, internal = 1, io = 1 }
    for code, status in pairs(wanted) do
      assert.equal(status, errors.exit_code { code = code }, code)
    end
  end)

  it("can be read", function()
    assert.equal("no such key (not_found)", tostring(errors.new("not_found", "no such key")))
  end)

  it("are kept by from, and made of all else", function()
    local err = errors.new("busy", "later")
    assert.equal(err, errors.from(err))
    local from_c = { code = "io", message = "disk" }
    assert.equal(from_c, errors.from(from_c))
    assert.same({ "internal", "oops" }, { errors.from("oops").code, errors.from("oops").message })
    assert.equal("io", errors.from("EBADF", "io").code)
  end)

  it("keep code and hint when wrapped", function()
    local err = errors.wrap(errors.new("busy", "later", "wait"), "join")
    assert.same({ "busy", "join: later", "wait" }, { err.code, err.message, err.hint })
  end)

  it("are raised as they are, bugs with a traceback", function()
    local ok, err = xpcall(errors.raise, errors.handler, "exists", "there")
    assert.is_false(ok)
    assert.same({ "exists", nil }, { err.code, err.traceback })
    ok, err = xpcall(function()
      error("a bug")
    end, errors.handler)
    assert.is_false(ok)
    assert.equal("internal", err.code)
    assert.truthy(err.traceback:find("errors_spec", 1, true))
  end)

  it("go over the wire as UTF-8", function()
    local body = errors.body(errors.new("invalid", "bad \xff key", "h"))
    assert.same({ error = { code = "invalid", message = "bad \u{FFFD} key", hint = "h" } }, body)
  end)
end)
