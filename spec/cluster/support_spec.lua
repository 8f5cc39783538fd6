-- The helpers of these specs: what goes wrong in them is told, and never ends the run without a word.
local uv = require "luv"
local proc = require "spec.support.proc"

local function soon(fn)
  local timer = uv.new_timer()
  timer:start(1, 0, function()
    timer:close()
    fn()
  end)
end

describe("a callback of a spec", function()
  it("that raises ends the waiting, whatever it raises", function()
    for _, value in ipairs { "a text", { code = "a table" } } do
      for _, wait in ipairs {
        function() proc.run_for(5) end,
        function() proc.wait_for("nothing", 5, function() return false end) end,
        function() proc.wait_for("nothing", 5, function() proc.run_for(1) end) end,
      } do
        local began = proc.now()
        soon(function() error(value, 0) end)
        local ok, err = pcall(wait)
        assert.is_false(ok)
        if type(value) == "string" then assert.truthy(err:find("in a callback: a text", 1, true), err) end
        if type(value) == "table" then assert.equal(value, err) end
        assert.is_true(proc.now() - began < 4)
      end
    end
    proc.run_for(0.01)
  end)

  it("that writes to who has gone is told so", function()
    collectgarbage()
    uv.kill(uv.os_getpid(), "sigpipe")
    local pipe, over, failure = uv.new_pipe(false), false, nil
    local fds = uv.pipe()
    uv.fs_close(fds.read)
    pipe:open(fds.write)
    pipe:write("x", function(err) over, failure = true, err end)
    proc.pump(5, function() return over end)
    pipe:close()
    proc.run_for(0.01)
    assert.truthy(failure and failure:find("EPIPE"), failure)
  end)
end)
