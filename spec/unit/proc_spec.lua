local proc = require "spec.support.proc"

describe("a program that is not there", function()
  it("is an error, and nothing that crashes at the end", function()
    local result = proc.run({ "lua5.4", "-e", [[
      package.path = "./?.lua;" .. package.path
      print(pcall(require("spec.support.proc").run, { "no-such-program" }))
    ]] })
    assert.same({ 0, 0 }, { result.code, result.signal }, result.out .. result.err)
    assert.truthy(result.out:find("cannot start no-such-program", 1, true), result.out .. result.err)
  end)
end)
